"""FETCH answers taken off the wire by us lie where imaplib would have put them, and its other answers are its own."""

from __future__ import annotations

import imaplib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from email_ingestion.mailbox.responses import Responses

ANSWERS = {
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
    "no answer at all": b"3 FETCH (UID 41)\r\n",
}


@contextmanager
def conversation(said: bytes, *, ends: bool) -> Iterator[imaplib.IMAP4]:
    """With a server that answers NOOP so, and has ended it or broken off then."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = threading.Thread(target=_serve, args=(listening, said, ends), daemon=True)
        serving.start()
        client = imaplib.IMAP4(*listening.getsockname())
        try:
            yield client
        finally:
            client.shutdown()
            serving.join()


def _serve(listening: socket.socket, said: bytes, ends: bool) -> None:
    peer, _ = listening.accept()
    with peer, peer.makefile("rwb") as lines:
        lines.write(b"* OK hello\r\n")
        lines.flush()
        for answer, ending in ((b"* CAPABILITY IMAP4rev1\r\n", True), (said, ends)):
            tag = lines.readline().split()[0]
            lines.write(answer + (tag + b" OK done\r\n" if ending else b""))
            lines.flush()


def heard(said: bytes, *, ends: bool = True, by: Callable[[imaplib.IMAP4], Any] = lambda client: None) -> Any:
    with conversation(said, ends=ends) as client:
        by(client)
        client.noop()
        return client.untagged_responses


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_lie_where_imaplib_puts_them(name: str):
    said = b"".join(answer + b"\r\n" for answer in ANSWERS[name])
    theirs = heard(said)
    assert "FETCH" in theirs
    assert heard(said, by=Responses) == theirs


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_answer_ends_as_it_does_with_imaplib(name: str):
    with pytest.raises(imaplib.IMAP4.abort) as theirs:
        heard(BROKEN[name], ends=False)
    with pytest.raises(imaplib.IMAP4.abort) as ours:
        heard(BROKEN[name], ends=False, by=Responses)
    assert str(ours.value) == str(theirs.value)
