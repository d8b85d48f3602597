"""Which messages are in the stream and among the dead letters: their identities, never their bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from email_ingestion.records import email_id
from email_ingestion.stream.connection import RedisLink, text
from email_ingestion.stream.keys import Keys

BEGINNING = "-"

# A page of messages of 5 kB holds Redis up for 6 ms; the bytes are those it copies to look at the fields.
PAGE_ENTRIES = 200
PAGE_BYTES = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ScannedEntry:
    """Which message an entry holds and where it was found."""

    id: str
    account: str
    mailbox: str
    uidvalidity: int
    uid: int
    gm_msgid: int | None
    sha256: str

    @property
    def email_id(self) -> str:
        """The message's identity."""
        return email_id(self.account, self.gm_msgid, self.sha256)


@dataclass(frozen=True, slots=True)
class EntryPage:
    """Some entries; `last` is the id of the last one looked at, whether it was ours or not."""

    last: str
    entries: tuple[ScannedEntry, ...]


class EntryScanner:
    """Goes through all entries of one partition, a page at a time. Its iterators raise like `RedisLink.call`."""

    def __init__(self, link: RedisLink, keys: Keys) -> None:
        self._link = link
        self._keys = keys
        self._script = link.script("census")

    def stream_pages(self, after: str = BEGINNING) -> Iterator[EntryPage]:
        """What is in the stream behind the id `after`, waiting or in flight, to its end at that moment."""
        return self._pages(self._keys.stream, after)

    def dead_letter_pages(self) -> Iterator[EntryPage]:
        """The dead letters."""
        return self._pages(self._keys.dlq, BEGINNING)

    def _pages(self, key: str, after: str) -> Iterator[EntryPage]:
        while page := self._page(key, after):
            yield page
            after = page.last

    def _page(self, key: str, after: str) -> EntryPage | None:
        start = after if after == BEGINNING else f"({after}"
        args: list[str | int] = [start, PAGE_ENTRIES, PAGE_BYTES]
        last, rows = self._link.call(lambda: self._script(keys=[key], args=args))
        return EntryPage(text(last), tuple(entry for row in rows if (entry := _entry(row)))) if last else None


def _entry(row: list[Any]) -> ScannedEntry | None:
    """None for what is no message of ours."""
    entry_id, account, mailbox, uidvalidity, uid, gm_msgid, sha256 = map(text, row)
    try:
        found = int(gm_msgid) if gm_msgid else None
        return ScannedEntry(entry_id, account, mailbox, int(uidvalidity), int(uid), found, sha256)
    except ValueError:
        return None
