"""Pipelined FETCH commands: the server prepares the next bodies while the ones before are processed.

RFC 3501 section 5.5 lets a client send a command before the last one has ended. A server may answer the second FETCH
before it ends the first (Dovecot does), so responses are told apart by their UIDs, and a body can be taken as soon as
it has come.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from email_ingestion.mailbox.fetch_parser import parse
from email_ingestion.mailbox.imap4 import Imap4
from email_ingestion.mailbox.message_summary import as_body, to_text

MARGIN_BYTES = 1024 * 1024  # that a part may be longer than was asked for
MAX_FETCHES = 3  # that are kept: an older one was asked for by code that now does something else

# The names that servers give a body, whatever was asked for: also as in the question, and as IMAP2 called it.
_BODY = re.compile(rb"(?:BODY(?:\.PEEK)?\[\]|RFC822(?:\.PEEK)?)(?:<(\d+)(?:\.\d+)?>)?", re.IGNORECASE)

ByteRange = tuple[int, int]  # a part of a body: offset and size in bytes


def body_item(byte_range: ByteRange | None) -> str:
    """Return the FETCH data item for a body, or for a part of it (RFC 3501 section 6.4.5)."""
    return f"BODY.PEEK[]<{byte_range[0]}.{byte_range[1]}>" if byte_range else "BODY.PEEK[]"


def body_key(byte_range: ByteRange | None) -> bytes:
    """Return the name under which the server sends that item."""
    return b"BODY[]<%d>" % byte_range[0] if byte_range else b"BODY[]"


class Body(NamedTuple):
    """What came for a BODY[] item: some servers answer with the whole message when a part was asked for."""

    origin: int | None  # the first byte of a part; None: the server says that it is the whole message
    content: bytes | None  # None for NIL


def find_body(data: Mapping[bytes, Any], byte_range: ByteRange | None) -> Body | None:
    """Return the body in FETCH data: what was asked for, else the whole message; None when there is neither."""
    wanted = body_key(byte_range)
    if wanted in data:
        return Body(byte_range[0] if byte_range else None, as_body(data[wanted]))
    for name, value in data.items():
        if found := _BODY.fullmatch(name):
            origin = int(found[1] or 0)
            if byte_range and found[1] and origin == byte_range[0]:
                return Body(origin, as_body(value))
            if not origin and not (byte_range and found[1]):
                return Body(None, as_body(value))
    return None


@dataclass(slots=True)
class PipelinedFetch:
    """One FETCH command, the bodies that came of it so far, and how it ended."""

    uids: frozenset[int]
    byte_range: ByteRange | None
    max_bytes: int
    tag: Any = None
    bodies: dict[int, Body] = field(default_factory=dict)  # without vanished messages
    status: str = ""  # OK, NO or BAD, once it has ended
    text: str = ""  # the server's text behind the status

    @property
    def is_complete(self) -> bool:
        """Whether every body came."""
        return len(self.bodies) == len(self.uids)

    def expect(self, imap4: Imap4) -> None:
        """Let the server send what was asked for: a part, too, for one that sends all instead is not asked ahead."""
        part_bytes = self.byte_range[1] + MARGIN_BYTES if self.byte_range else self.max_bytes
        imap4.expect_bodies(len(self.uids), min(part_bytes, self.max_bytes))


class FetchPipeline:
    """The FETCH commands under way on one connection; `drain` it before any other command.

    Methods raise imaplib's errors and OSError.
    """

    def __init__(self, imap4: Imap4) -> None:
        self._imap4 = imap4
        self._kept: list[PipelinedFetch] = []
        self._running: list[PipelinedFetch] = []
        self._max_bytes = 0  # of a body that one of them asks for

    def request(self, uids: Sequence[int], byte_range: ByteRange | None, max_bytes: int) -> None:
        """Have the server send the bodies, or a part of each, unless that is under way or kept.

        A body of more than `max_bytes` ends the connection.
        """
        if not self._find(uids, byte_range):
            if not self._running:
                self._imap4.begin_answer()
            fetch = PipelinedFetch(frozenset(uids), byte_range, max_bytes)
            fetch.expect(self._imap4)
            uid_set, item = ",".join(map(str, uids)), body_item(byte_range)
            fetch.tag = self._imap4.send_command("UID", "FETCH", uid_set, f"(UID {item})")
            self._kept = [*self._kept, fetch][-MAX_FETCHES:]
            self._running.append(fetch)
            self._max_bytes = max(self._max_bytes, max_bytes)

    def take(self, uids: Sequence[int], byte_range: ByteRange | None = None) -> PipelinedFetch | None:
        """Wait until every body came or the FETCH ended, and return it; None when it was not requested."""
        fetch = self._find(uids, byte_range)
        while fetch and not (fetch.is_complete or fetch.status):
            self._receive()
        self._kept = [kept for kept in self._kept if kept is not fetch]
        return fetch

    def drain(self) -> None:
        """Receive everything that was requested; kept bodies can still be taken."""
        while self._running:
            self._receive()

    def _find(self, uids: Sequence[int], byte_range: ByteRange | None) -> PipelinedFetch | None:
        wanted = frozenset(uids)
        return next((fetch for fetch in self._kept if fetch.uids == wanted and fetch.byte_range == byte_range), None)

    def _receive(self) -> None:
        """Receive one response and give it to the FETCH commands it belongs to."""
        with self._imap4.limited_literals(self._max_bytes):
            self._imap4.receive_response()
        for uid, data in parse(self._imap4.pop_fetch_responses()).items():
            self._keep(uid, data)
        ended: dict[Any, Any] = self._imap4.tagged_commands
        done = [fetch for fetch in self._running if ended[fetch.tag]]
        for fetch in done:
            fetch.status, texts = ended.pop(fetch.tag)
            fetch.text = to_text(texts[-1])
        if done:
            self._running = [fetch for fetch in self._running if not fetch.status]
            self._max_bytes = max((fetch.max_bytes for fetch in self._running), default=0)
            self._imap4.begin_answer()
            for fetch in self._running:
                fetch.expect(self._imap4)

    def _keep(self, uid: int, data: Mapping[bytes, Any]) -> None:
        for fetch in self._kept:
            if uid in fetch.uids and uid not in fetch.bodies and (body := find_body(data, fetch.byte_range)):
                fetch.bodies[uid] = body
                if fetch.byte_range and body.origin is None:
                    return  # a whole message answers one command for a part, not all of them
