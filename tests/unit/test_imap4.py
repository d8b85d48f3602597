"""FETCH responses that `Imap4` reads are stored as imaplib stores them, and other responses are read by imaplib."""

from __future__ import annotations

import imaplib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from email_ingestion.errors import IMAPProtocolViolation
from email_ingestion.mailbox.fetch_parser import parse
from email_ingestion.mailbox.imap4 import Imap4
from email_ingestion.mailbox.metered_imap4 import ANSWER_BYTES, LINE_BYTES

RESPONSES = {
    "a line": [b"* 3 FETCH (UID 41 FLAGS (\\Seen))"],
    "a literal": [b"* 3 FETCH (UID 41 BODY[] {5}\r\nhello)", b"* 4 FETCH (UID 42 BODY[] {0}\r\n)"],
    "two literals": [b"* 3 FETCH (X-GM-LABELS ({3}\r\nabc) BODY[] {7}\r\n\r\n* 1 O UID 41)"],
    "no literal but its brace": [b'* 3 FETCH (UID 41 X-GM-LABELS ("{5}"))', b"* 3 FETCH (X-GM-LABELS (a}))"],
    "others between": [b"* 3 FETCH (UID 41)", b"* 12 EXISTS", b"* OK [UIDNEXT 13] next", b"* 4 FETCH (UID 42)"],
    "small letters": [b"* 3 FETCH (uid 41)", b"* 4 FETCH NIL"],
}
BROKEN = {
    "no line end": b"* 3 FETCH (UID 41",
    "an end inside a literal": b"* 3 FETCH (UID 41 BODY[] {5}\r\nhe",
    "no line behind a literal": b"* 3 FETCH (UID 41 BODY[] {5}\r\nhello",
    "no response at all": b"3 FETCH (UID 41)\r\n",
    "a line of a mail": b"Dear customer\r\n",
    "an item of a list in a mail": b"* (Dear)\r\n",
    "a literal that is longer": b"* 3 FETCH (UID 41 BODY[] {3}\r\nhello Dear\r\n)\r\n",
    "a literal that is shorter": b"* 3 FETCH (UID 41 BODY[] {8}\r\nhello)\r\n* 4 FETCH (UID 42 BODY[] {5}\r\nhe)\r\n",
}

Connect = Callable[[str, int], imaplib.IMAP4]


def ours(host: str, port: int) -> imaplib.IMAP4:
    return Imap4(host, port, None)


@contextmanager
def connected(data: bytes, connect: Connect, *, ends: bool, ending: bytes = b"OK done") -> Iterator[imaplib.IMAP4]:
    """To a server that answers NOOP with `data`, and then either ends the response or breaks off."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = threading.Thread(target=_serve, args=(listening, data, ends, ending), daemon=True)
        serving.start()
        client = connect(*listening.getsockname())
        try:
            yield client
        finally:
            client.shutdown()
            serving.join()


def _serve(listening: socket.socket, data: bytes, ends: bool, ending: bytes) -> None:
    peer, _ = listening.accept()
    with peer, peer.makefile("rwb") as lines:
        lines.write(b"* OK hello\r\n")
        lines.flush()
        for response, is_whole in ((b"* CAPABILITY IMAP4rev1\r\n", True), (data, ends)):
            tag = lines.readline().split()[0]
            lines.write(response + (tag + b" " + ending + b"\r\n" if is_whole else b""))
            lines.flush()


def received(data: bytes, connect: Connect, *, ends: bool = True) -> Any:
    with connected(data, connect, ends=ends) as client:
        client.noop()
        return client.untagged_responses


@pytest.mark.parametrize("name", RESPONSES)
def test_responses_are_stored_where_imaplib_stores_them(name: str):
    data = b"".join(response + b"\r\n" for response in RESPONSES[name])
    theirs = received(data, imaplib.IMAP4)
    assert "FETCH" in theirs
    assert received(data, ours) == theirs


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_response_ends_the_connection_and_nothing_of_it_is_told(name: str):
    for connect in (imaplib.IMAP4, ours):
        with pytest.raises(imaplib.IMAP4.abort) as caught:
            received(BROKEN[name], connect, ends=False)
    assert re.search("socket error: EOF|unexpected response", str(caught.value))
    assert not re.search("Dear|UID|FETCH|he", str(caught.value).removeprefix("command: NOOP => ").replace("the", ""))


@pytest.mark.parametrize("ending", [b"OK", b"ok", b"OK ", b"OK done"])
def test_a_status_without_a_text_is_one_and_small_letters_are_large_ones(ending: bytes):
    with connected(
        b"* OK\r\n* search 3 4\r\n* 5 exists\r\n* 2 fetch (UID 7)\r\n", ours, ends=True, ending=ending
    ) as client:
        assert client.noop()[0] == "OK"
        assert client.untagged_responses["SEARCH"] == [b"3 4"]
        assert client.untagged_responses["FETCH"] == [b"2 (UID 7)"]
        assert client.exists == 5


@pytest.mark.parametrize("behind", [b"", b"\r\n"])
def test_a_parenthesis_that_is_missing_behind_a_literal_takes_no_other_response_along(behind: bytes):
    data = b"".join(b"* %d FETCH (UID 4%d BODY[] {5}\r\nhello\r\n" % (number, number) + behind for number in (1, 2))
    found = parse(received(data, ours)["FETCH"])
    assert {uid: each[b"BODY[]"] for uid, each in found.items()} == {41: b"hello", 42: b"hello"}


TOO_MUCH = {
    "responses": b"* OK and more\r\n" * (ANSWER_BYTES // (15 + LINE_BYTES) + 1),
    "a line": b"* OK " + b"a" * 1_000_000 + b"\r\n",
    "a literal": b"* LIST () {9999999999}\r\n",
    "a body nobody asked for": b"* 3 FETCH (UID 41 BODY[] {9999999999}\r\n",
    "a number": b"* 3 FETCH (UID 41 BODY[] {" + b"9" * 999_999 + b"}\r\n",
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_what_no_answer_may_have_is_not_read(name: str):
    with pytest.raises(IMAPProtocolViolation, match="in answer to NOOP"):
        received(TOO_MUCH[name], ours)


def test_bodies_that_were_asked_for_come_on_top():
    body = b"* 3 FETCH (UID 41 BODY[] {%d}\r\n%b)\r\n" % (ANSWER_BYTES, b"a" * ANSWER_BYTES)
    with connected(body, ours, ends=True) as client:
        client.expect_bodies(1, ANSWER_BYTES)
        client.noop()
        assert len(client.untagged_responses["FETCH"][0][1]) == ANSWER_BYTES
