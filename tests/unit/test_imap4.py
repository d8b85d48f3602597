"""FETCH responses that `Imap4` reads are stored as imaplib stores them, and other responses are read by imaplib."""

from __future__ import annotations

import imaplib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from email_ingestion.errors import IMAPProtocolViolation
from email_ingestion.mailbox.imap4 import ANSWER_BYTES, LINE_BYTES, Imap4

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
def test_a_broken_response_ends_as_it_does_with_imaplib(name: str):
    errors = []
    for connect in (imaplib.IMAP4, ours):
        with pytest.raises(imaplib.IMAP4.abort) as caught:
            received(BROKEN[name], connect, ends=False)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("ending", [b"OK", b"ok", b"OK ", b"OK done"])
def test_a_status_without_a_text_is_one_and_small_letters_are_large_ones(ending: bytes):
    with connected(
        b"* OK\r\n* search 3 4\r\n* 5 exists\r\n* 2 fetch (UID 7)\r\n", ours, ends=True, ending=ending
    ) as client:
        assert client.noop()[0] == "OK"
        assert client.untagged_responses["SEARCH"] == [b"3 4"]
        assert client.untagged_responses["FETCH"] == [b"2 (UID 7)"]
        assert client.exists == 5


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
