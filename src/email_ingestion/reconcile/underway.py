"""One account's messages that are queued or dead letters, as sets small enough to keep.

A number for each message where the server has X-GM-EXT-1 (some 60 bytes), else a digest and a UID: bounded by what
lies in Redis, whatever the size of the mailbox. It may be kept for a while: a message seen here stays accounted for,
because from here it goes nowhere but into the ledger or among the dead letters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from email_ingestion.ledger.records import Place
from email_ingestion.stream import EntryScanner
from email_ingestion.stream.entry_scan import BEGINNING, EntryPage, ScannedEntry

Where = Literal["queued", "dead"]


@dataclass(slots=True)
class _Messages:
    gm_msgids: set[int] = field(default_factory=set)
    digests: set[bytes] = field(default_factory=set)
    uids: dict[tuple[str, int], set[int]] = field(default_factory=dict)  # by mailbox and UIDVALIDITY

    def add(self, entry: ScannedEntry) -> None:
        if entry.gm_msgid is not None:
            self.gm_msgids.add(entry.gm_msgid)
            return
        self.digests.add(_digest(entry.sha256))
        self.uids.setdefault((entry.mailbox, entry.uidvalidity), set()).add(entry.uid)


class Underway:
    """What of `account` was queued or dead when `look` was last called."""

    def __init__(self, census: EntryScanner, account: str) -> None:
        self._census = census
        self._account = account
        self._seen: dict[Where, _Messages] = {"queued": _Messages(), "dead": _Messages()}
        self._last = BEGINNING
        self._looked = False

    @property
    def last(self) -> str:
        """The id of the last entry of the stream that was looked at."""
        return self._last

    def look(self) -> None:
        """Look at everything, or, from the second time on, at what was appended since; raises `RedisLink.call`'s."""
        self._look_at_stream()
        if self._looked:
            return
        self._add("dead", self._census.dead_letter_pages())
        self._look_at_stream()  # a dead letter replayed meanwhile
        self._looked = True

    def look_once(self) -> None:
        """Look unless that was done before."""
        if not self._looked:
            self.look()

    def _look_at_stream(self) -> None:
        self._last = self._add("queued", self._census.stream_pages(self._last)) or self._last

    def _add(self, where: Where, pages: Iterable[EntryPage]) -> str | None:
        last = None
        for page in pages:
            last = page.last
            for entry in page.entries:
                if entry.account == self._account:
                    self._seen[where].add(entry)
        return last

    def by_gm_msgid(self, gm_msgid: int) -> Where | None:
        """Where the message with this X-GM-MSGID is."""
        return self._first(lambda seen: gm_msgid in seen.gm_msgids)

    def by_place(self, place: Place) -> Where | None:
        """Where the message from this place is, on a server without X-GM-EXT-1."""
        return self._first(lambda seen: place.uid in seen.uids.get((place.mailbox, place.uidvalidity), ()))

    def by_digest(self, sha256: str) -> Where | None:
        """Where the message with these bytes is, on a server without X-GM-EXT-1."""
        return self._first(lambda seen: _digest(sha256) in seen.digests)

    def _first(self, has: Callable[[_Messages], bool]) -> Where | None:
        for where, seen in self._seen.items():
            if has(seen):
                return where
        return None


def _digest(sha256: str) -> bytes:
    """Half the size of its hexadecimal text; an entry that is damaged has whatever it has."""
    try:
        return bytes.fromhex(sha256)
    except ValueError:
        return sha256.encode()
