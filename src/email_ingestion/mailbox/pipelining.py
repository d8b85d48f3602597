"""Bodies asked for before they are wanted: the server gets the next ones ready while those before are taken in.

A server may answer the second FETCH before it ends the first (Dovecot does), so what comes is told apart by its UIDs,
and bodies are had as soon as they are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from imapclient.exceptions import ProtocolError

from email_ingestion.mailbox.fetch_parser import read
from email_ingestion.mailbox.message_summary import to_text

MOST = 3  # FETCHes that are kept: whoever asked for one before these has something else to do meanwhile

Span = tuple[int, int]  # a part of a body: from which byte, and how many at most


def item_of(span: Span | None) -> str:
    """What to ask for."""
    return f"BODY.PEEK[]<{span[0]}.{span[1]}>" if span else "BODY.PEEK[]"


def name_of(span: Span | None) -> bytes:
    """What the server calls it."""
    return b"BODY[]<%d>" % span[0] if span else b"BODY[]"


@dataclass(slots=True)
class Asked:
    """One FETCH: what came of it, and in what it ended."""

    uids: frozenset[int]
    span: Span | None
    tag: Any
    bodies: dict[int, bytes] = field(default_factory=dict)  # without those of vanished messages
    status: str = ""  # OK, NO or BAD, once it has ended
    said: str = ""  # the server's words for it

    @property
    def whole(self) -> bool:
        """Whether everything came."""
        return len(self.bodies) == len(self.uids)


class Ahead:
    """Of one conversation; whoever continues it otherwise calls `end` first. Its methods raise what imaplib does."""

    def __init__(self, imap: Any) -> None:
        self._imap = imap
        self._kept: list[Asked] = []
        self._running: list[Asked] = []

    def ask(self, uids: Sequence[int], span: Span | None = None) -> None:
        """Have the server send the bodies, or a part of each; what is kept is not asked for again."""
        if not self._find(uids, span):
            command = ("UID", "FETCH", ",".join(map(str, uids)), f"({item_of(span)})")
            asked = Asked(frozenset(uids), span, self._imap._command(*command))  # noqa: SLF001 - there is no public way
            self._kept = [*self._kept, asked][-MOST:]
            self._running.append(asked)

    def take(self, uids: Sequence[int], span: Span | None = None) -> Asked | None:
        """What came, once that is everything or the FETCH has ended; None where it was not asked for."""
        asked = self._find(uids, span)
        while asked and not (asked.whole or asked.status):
            self._receive()
        self._kept = [each for each in self._kept if each is not asked]
        return asked

    def _find(self, uids: Sequence[int], span: Span | None) -> Asked | None:
        wanted = frozenset(uids)
        return next((each for each in self._kept if each.uids == wanted and each.span == span), None)

    def end(self) -> None:
        """Let everything that was asked for come; what is kept is there to be taken."""
        while self._running:
            self._receive()

    def _receive(self) -> None:
        """One answer."""
        imap = self._imap
        imap._check_bye()  # noqa: SLF001 - as imaplib does before each
        imap._get_response()  # noqa: SLF001
        answers = imap.untagged_responses.pop("FETCH", [])
        with suppress(ProtocolError):  # what cannot be read has not come
            for uid, data in read(answers).items():
                for asked in self._kept:
                    if uid in asked.uids and name_of(asked.span) in data:
                        asked.bodies[uid] = data[name_of(asked.span)] or b""
        for asked in self._running:
            if imap.tagged_commands[asked.tag]:
                asked.status, said = imap.tagged_commands.pop(asked.tag)
                asked.said = to_text(said[-1])
        self._running = [asked for asked in self._running if not asked.status]
