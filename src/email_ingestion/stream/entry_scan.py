"""Reads streams page by page: whole entries, or only which messages they hold.

`read_entries` transfers every field; `EntryScanner` only the identities, which a script picks out on the server.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from email_ingestion.records import email_id
from email_ingestion.stream.keys import Keys
from email_ingestion.stream.redis_link import RedisLink, text

BEGINNING = "-"
NO_ENTRY = "0-0"

# An entry holds up to BLOB_THRESHOLD_BYTES, and Redis does nothing else during a call: a page stays below some 10 MB.
PAGE = 50

# A scanned page of messages of 5 kB blocks Redis for 6 ms; the bytes are those it copies to look at the fields.
SCAN_ENTRIES = 200
SCAN_BYTES = 2 * 1024 * 1024

StreamEntry = tuple[str, dict[bytes, bytes]]  # entry id and fields


def read_entries(link: RedisLink, key: str, end: str = "+", start: str = BEGINNING) -> Iterator[StreamEntry]:
    """Yield the entries of a stream from the id `start` up to `end`, oldest first; raises like `RedisLink.call`."""
    while True:
        page: Any = link.call(partial(link.client.xrange, key, start, end, count=PAGE))
        for entry_id, fields in page:
            yield text(entry_id), fields
        if len(page) < PAGE:
            return
        start = f"({text(page[-1][0])}"


def newest_entry_id(link: RedisLink, key: str) -> str:
    """Return the id of the newest entry of a stream, `NO_ENTRY` when it has none; raises like `RedisLink.call`."""
    newest: Any = link.call(lambda: link.client.xrevrange(key, count=1))
    return text(newest[0][0]) if newest else NO_ENTRY


@dataclass(frozen=True, slots=True)
class ScannedEntry:
    """The message of an entry, without its bytes."""

    id: str
    account: str
    mailbox: str
    uidvalidity: int
    uid: int
    gm_msgid: int | None
    sha256: str
    raw_ref: str  # of its bytes in the blob store; empty where the entry holds them
    internaldate: str  # ISO 8601, as the entry has it

    @property
    def email_id(self) -> str:
        """The message's identity."""
        return email_id(self.account, self.gm_msgid, self.sha256)


@dataclass(frozen=True, slots=True)
class EntryPage:
    """Some entries; `last` is the id of the last one read, also when it was not readable and is not among them."""

    last: str
    entries: tuple[ScannedEntry, ...]


class EntryScanner:
    """Scans all entries of one partition, a page at a time. Its iterators raise like `RedisLink.call`."""

    def __init__(self, link: RedisLink, keys: Keys) -> None:
        self._link = link
        self._keys = keys
        self._script = link.script("scan_entries")

    def stream_pages(self, after: str = BEGINNING) -> Iterator[EntryPage]:
        """Yield the entries of the stream after the id `after`, waiting or in flight, to its end at that moment."""
        return self._pages(self._keys.stream, after)

    def dead_letter_pages(self) -> Iterator[EntryPage]:
        """Yield the dead letters."""
        return self._pages(self._keys.dlq, BEGINNING)

    def _pages(self, key: str, after: str) -> Iterator[EntryPage]:
        while page := self._page(key, after):
            yield page
            after = page.last

    def _page(self, key: str, after: str) -> EntryPage | None:
        start = after if after == BEGINNING else f"({after}"
        args: list[str | int] = [start, SCAN_ENTRIES, SCAN_BYTES]
        last, rows = self._link.call(lambda: self._script(keys=[key], args=args))
        return EntryPage(text(last), tuple(entry for row in rows if (entry := _entry(row)))) if last else None


def _entry(row: list[Any]) -> ScannedEntry | None:
    """Return the entry of a row, None when it holds no message of this program."""
    entry_id, account, mailbox, uidvalidity, uid, gm_msgid, sha256, raw_ref, internaldate = map(text, row)
    try:
        found = int(gm_msgid) if gm_msgid else None
        return ScannedEntry(
            entry_id, account, mailbox, int(uidvalidity), int(uid), found, sha256, raw_ref, internaldate
        )
    except ValueError:
        return None
