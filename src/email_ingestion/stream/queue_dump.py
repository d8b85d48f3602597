"""The stream's entries out of Redis into a file and back, with all their fields and in their order.

    stream ──entries──▶ file, on the disk ──remove──▶ gone from the stream        file ──refill──▶ stream

Removal comes after the file is safe, so that a command killed anywhere leaves an entry in both rather than in neither;
on the way back a message that is in the stream or among the dead letters is not added again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from heapq import merge
from itertools import islice

from email_ingestion.records import email_id
from email_ingestion.stream.codec import pack_entries
from email_ingestion.stream.dead_letters import message_identity
from email_ingestion.stream.entry_scan import BEGINNING, EntryScanner, StreamEntry, newest_entry_id, read_entries
from email_ingestion.stream.keys import GROUP, Keys, entry_order, parse_entry_id
from email_ingestion.stream.redis_link import RedisLink, text

REMOVE_CHUNK = 200
REFILL_BYTES = 2 * 1024 * 1024


class QueueDump:
    """The streams of all partitions. Methods and iterators raise like `RedisLink.call`."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._remove = link.script("remove_entries")
        self._append_missing = link.script("append_missing")
        self.left_out = 0  # of a refill, because they were erased

    def depth(self) -> int:
        """Return the number of entries."""
        return self._link.call(lambda: sum(int(self._link.client.xlen(keys.stream)) for keys in self._link.partitions))

    def entries(self) -> Iterator[StreamEntry]:
        """Yield the present entries, waiting or in flight, oldest first, without those that are appended meanwhile."""
        ends = [newest_entry_id(self._link, keys.stream) for keys in self._link.partitions]
        found = (self._entries_until(keys, end) for keys, end in zip(self._link.partitions, ends, strict=True))
        return merge(*found, key=lambda entry: entry_order(entry[0]))

    def _entries_until(self, keys: Keys, end: str) -> Iterator[StreamEntry]:
        for entry_id, fields in read_entries(self._link, keys.stream, end):
            yield keys.format_entry_id(entry_id), fields

    def remove(self, entries: Iterable[tuple[str, int]]) -> Iterator[int]:
        """Remove entries by id and size (`entry_bytes`), chunk by chunk; yield how many of each chunk still existed."""
        left = iter(entries)
        while chunk := list(islice(left, REMOVE_CHUNK)):
            for keys in self._link.partitions:
                parsed = [(parse_entry_id(formatted_id), size) for formatted_id, size in chunk]
                args = [arg for (at, entry_id), size in parsed if at == keys.partition for arg in (entry_id, size)]
                if args:
                    script_keys = [keys.stream, keys.volume, keys.priority]
                    yield int(self._link.call(partial(self._remove, keys=script_keys, args=[GROUP, *args])))

    def refill(
        self, entries: Iterable[StreamEntry], erased: Callable[[Collection[str]], Collection[str]] = lambda _: ()
    ) -> Iterator[tuple[int, int]]:
        """Append entries whose message is missing, chunk by chunk; yield how many were read and how many added.

        `erased` returns those of some identities that were erased: they are left out, and counted in `left_out`.
        """
        known = [_KnownMessages(self._link, keys) for keys in self._link.partitions]
        for chunk in _chunks(entries):
            parts: dict[int, list[StreamEntry]] = {}
            names = [_names(entry) for entry in chunk]
            gone = erased({name for each in names for name in each})
            left = [entry for entry, each in zip(chunk, names, strict=True) if each.isdisjoint(gone)]
            for entry in left:
                parts.setdefault(self._link.keys_for(text(entry[1].get(b"account", b""))).partition, []).append(entry)
            added = sum(self._refill_partition(known[partition], part) for partition, part in parts.items())
            self.left_out += len(chunk) - len(left)
            yield len(chunk), added

    def _refill_partition(self, known: _KnownMessages, entries: Sequence[StreamEntry]) -> int:
        known.update()
        missing = [(_identity(entry), entry[1]) for entry in entries if _identity(entry) not in known.identities]
        if not missing:
            return 0
        keys = [known.keys.stream, known.keys.volume, known.keys.priority]
        args = [known.last_seen_id, "", *pack_entries(missing)]  # without an owner: an operator has no lease
        return int(self._link.call(lambda: self._append_missing(keys=keys, args=args)))


class _KnownMessages:
    """The identities of the messages in one partition, as of the last update."""

    def __init__(self, link: RedisLink, keys: Keys) -> None:
        self.keys = keys
        self.identities: set[str] = set()
        self.last_seen_id = BEGINNING
        self._scanner = EntryScanner(link, keys)
        self._dead_letters_read = False

    def update(self) -> None:
        """Add the entries that came since the last call."""
        if not self._dead_letters_read:
            self.identities.update(
                entry.email_id for page in self._scanner.dead_letter_pages() for entry in page.entries
            )
            self._dead_letters_read = True
        for page in self._scanner.stream_pages(self.last_seen_id):
            self.identities.update(entry.email_id for entry in page.entries)
            self.last_seen_id = page.last


def entry_bytes(fields: Mapping[bytes, bytes]) -> int:
    """Return the bytes of an entry's fields, as the scripts count the stream's volume."""
    return sum(len(name) + len(value) for name, value in fields.items())


def _identity(entry: StreamEntry) -> str:
    entry_id, fields = entry
    texts = {text(name): text(value) for name, value in fields.items() if name in {b"account", b"gm_msgid", b"sha256"}}
    return message_identity(texts) or f"entry:{entry_id}"


def _names(entry: StreamEntry) -> set[str]:
    """Return the identities of an entry's message, that by its bytes too."""
    account, sha256 = (text(entry[1].get(name, b"")) for name in (b"account", b"sha256"))
    return {_identity(entry), email_id(account, None, sha256)}


def _chunks(entries: Iterable[StreamEntry]) -> Iterator[list[StreamEntry]]:
    """Yield chunks of some megabytes: Redis does nothing else while it takes one."""
    chunk: list[StreamEntry] = []
    size = 0
    for entry in entries:
        chunk.append(entry)
        size += entry_bytes(entry[1])
        if size >= REFILL_BYTES or len(chunk) >= REMOVE_CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
