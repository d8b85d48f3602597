"""The queue out of Redis into a file and back: every entry with all its fields, in their order.

    stream ──entries──▶ file, on the disk ──take_out──▶ gone from the stream        file ──refill──▶ stream

Taking out comes after the file is safe, so that a command killed anywhere leaves an entry in both rather than in
neither; coming back, a message that is in the stream or among the dead letters is not added again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from heapq import merge
from itertools import islice
from typing import Any

from email_ingestion.stream.codec import pack_entries
from email_ingestion.stream.connection import RedisLink, text
from email_ingestion.stream.dead_letter_queue import StreamEntry
from email_ingestion.stream.dead_letters import message_identity
from email_ingestion.stream.entry_scan import BEGINNING, EntryScanner
from email_ingestion.stream.keys import GROUP, Keys, entry_order, parse_entry_id

PAGE = 50
TAKE_OUT_CHUNK = 200
REFILL_BYTES = 2 * 1024 * 1024


class QueueDump:
    """The streams of all partitions. Every method and iterator raises like `RedisLink.call`."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._take_out = link.script("take_out")
        self._fill_gap = link.script("fill_gap")

    def depth(self) -> int:
        """How many entries there are."""
        return self._link.call(lambda: sum(int(self._link.client.xlen(keys.stream)) for keys in self._link.partitions))

    def entries(self) -> Iterator[StreamEntry]:
        """Those that are here now, waiting or in flight, oldest first; what is appended meanwhile is not among them."""
        ends = [self._newest(keys) for keys in self._link.partitions]
        found = (self._until(keys, end) for keys, end in zip(self._link.partitions, ends, strict=True))
        return merge(*found, key=lambda entry: entry_order(entry[0]))

    def _newest(self, keys: Keys) -> str:
        newest: Any = self._link.call(lambda: self._link.client.xrevrange(keys.stream, count=1))
        return text(newest[0][0]) if newest else "0-0"

    def _until(self, keys: Keys, end: str) -> Iterator[StreamEntry]:
        start = "-"
        while page := self._page(keys, start, end):
            yield from ((keys.format_entry_id(entry_id), fields) for entry_id, fields in page)
            start = f"({page[-1][0]}"

    def remove(self, entries: Iterable[tuple[str, int]]) -> Iterator[int]:
        """Remove entries by id and size (`entry_bytes`), some at a time; yields how many of them were still here."""
        left = iter(entries)
        while chunk := list(islice(left, TAKE_OUT_CHUNK)):
            for keys in self._link.partitions:
                words = [(parse_entry_id(spoken), size) for spoken, size in chunk]
                args = [word for (at, entry_id), size in words if at == keys.partition for word in (entry_id, size)]
                if args:
                    there = [keys.stream, keys.volume, keys.priority]
                    yield int(self._link.call(partial(self._take_out, keys=there, args=[GROUP, *args])))

    def refill(self, entries: Iterable[StreamEntry]) -> Iterator[tuple[int, int]]:
        """Append entries whose message is not here yet, some at a time; yields how many were looked at and added."""
        shelves = [_Shelf(self._link, keys) for keys in self._link.partitions]
        for chunk in _chunks(entries):
            parts: dict[int, list[StreamEntry]] = {}
            for entry in chunk:
                parts.setdefault(self._link.keys_for(text(entry[1].get(b"account", b""))).partition, []).append(entry)
            added = 0
            for partition, part in parts.items():
                shelf = shelves[partition]
                shelf.look()
                new = [(_identity(entry), entry[1]) for entry in part if _identity(entry) not in shelf.known]
                added += self._append(shelf.keys, new, shelf.seen) if new else 0
            yield len(chunk), added

    def _append(self, keys: Keys, new: Sequence[tuple[str, Mapping[bytes, bytes]]], seen: str) -> int:
        args = [seen, "", *pack_entries(new)]  # for nobody: an operator holds no lease
        return int(self._link.call(lambda: self._fill_gap(keys=[keys.stream, keys.volume, keys.priority], args=args)))

    def _page(self, keys: Keys, start: str, end: str) -> list[StreamEntry]:
        found: Any = self._link.call(lambda: self._link.client.xrange(keys.stream, start, end, count=PAGE))
        return [(text(entry_id), fields) for entry_id, fields in found]


class _Shelf:
    """What one partition holds, as far as was looked."""

    def __init__(self, link: RedisLink, keys: Keys) -> None:
        self.keys = keys
        self.known: set[str] = set()
        self.seen = BEGINNING
        self._census = EntryScanner(link, keys)
        self._looked = False

    def look(self) -> None:
        """At what came since the last look."""
        if not self._looked:
            self.known.update(entry.email_id for page in self._census.dead_letter_pages() for entry in page.entries)
            self._looked = True
        for page in self._census.stream_pages(self.seen):
            self.known.update(entry.email_id for entry in page.entries)
            self.seen = page.last


def entry_bytes(fields: Mapping[bytes, bytes]) -> int:
    """The bytes of an entry's fields, as the scripts count the stream's volume."""
    return sum(len(name) + len(value) for name, value in fields.items())


def _identity(entry: StreamEntry) -> str:
    entry_id, fields = entry
    said = {text(name): text(value) for name, value in fields.items() if name in {b"account", b"gm_msgid", b"sha256"}}
    return message_identity(said) or f"entry:{entry_id}"


def _chunks(entries: Iterable[StreamEntry]) -> Iterator[list[StreamEntry]]:
    """Portions of some megabytes: Redis does nothing else while it takes one."""
    chunk: list[StreamEntry] = []
    size = 0
    for entry in entries:
        chunk.append(entry)
        size += entry_bytes(entry[1])
        if size >= REFILL_BYTES or len(chunk) >= TAKE_OUT_CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
