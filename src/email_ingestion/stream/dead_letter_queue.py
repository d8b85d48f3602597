"""Where dead letters lie: found page by page, put back into the stream, or removed.

    stream ──bury (worker)──▶ dead letters ──replay──▶ stream
                                    └──remove──▶ gone

All of it may run twice, at the same time, or be killed anywhere: a letter is put back or removed once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from heapq import merge
from itertools import islice
from typing import Any

import zstandard

from email_ingestion.errors import PermanentError
from email_ingestion.stream.connection import RedisLink
from email_ingestion.stream.dead_letters import DeadLetter, parse_dead_letter
from email_ingestion.stream.keys import Keys, entry_order, parse_entry_id

# An entry holds up to BLOB_THRESHOLD_BYTES, and Redis does nothing else during a call: a page stays below some
# 10 MB, a replay (which copies) below some milliseconds.
PAGE = 50
REPLAY_CHUNK = 20
REMOVE_CHUNK = 500

StreamEntry = tuple[str, dict[bytes, bytes]]


class DeadLetterQueue:
    """The dead letters of all partitions. Every method raises like `RedisLink.call`, and so do its iterators."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._client = link.client
        self._partitions = link.partitions
        self._replay = link.script("replay")

    def depth(self) -> int:
        """How many there are."""
        return self._link.call(lambda: sum(int(self._client.xlen(keys.dlq)) for keys in self._partitions))

    def letters(self, before: datetime | None = None) -> Iterator[DeadLetter]:
        """Those that lie here now and died before then, oldest first; what is buried meanwhile is not among them.

        Without that end, replaying what dies again at once would never be done.
        """
        ends = [self._last_id(keys) for keys in self._partitions]  # all of them now, before the first is read
        if before:
            ends = [min(end, f"{max(0, int(before.timestamp() * 1000))}-0", key=entry_order) for end in ends]
        found = (self._until(keys, end) for keys, end in zip(self._partitions, ends, strict=True))
        yield from merge(*found, key=lambda letter: entry_order(letter.id))

    def _until(self, keys: Keys, end: str) -> Iterator[DeadLetter]:
        start = "-"
        while page := self._page(keys, start, end):
            for letter_id, fields in page:
                yield parse_dead_letter(keys.format_entry_id(letter_id), fields)
            start = f"({page[-1][0]}"

    def find(self, ids: Iterable[str]) -> Iterator[DeadLetter]:
        """Those of these ids that are here."""
        return (parse_dead_letter(letter_id, fields) for letter_id, fields in self.entries(ids))

    def entries(self, ids: Iterable[str]) -> Iterator[StreamEntry]:
        """Id and all fields of those of these ids that are here, payload included, a page of them in memory."""
        for chunk in _chunks(ids, PAGE):
            found = (entry for keys, here in self._parts(chunk) for entry in self._exactly(keys, here))
            yield from sorted(found, key=lambda entry: entry_order(entry[0]))

    def raw(self, letter_id: str) -> bytes | None:
        """The RFC 822 bytes a letter holds, whatever else of it is damaged; None when it holds none or is not here.

        Raises PermanentError when they cannot be unpacked.
        """
        for _, fields in self.entries([letter_id]):
            if b"raw" in fields:
                try:
                    return zstandard.ZstdDecompressor().decompress(fields[b"raw"])
                except zstandard.ZstdError as error:
                    raise PermanentError(f"the payload of {letter_id} cannot be unpacked: {error}") from error
        return None

    def replay(self, ids: Iterable[str]) -> Iterator[int]:
        """Put letters back into the stream, some at a time; yields how many of them were still here."""
        for chunk in _chunks(ids, REPLAY_CHUNK):
            for keys, here in self._parts(chunk):
                yield self._put_back(keys, here)

    def remove(self, ids: Iterable[str]) -> Iterator[list[str]]:
        """Delete letters for good, some at a time; yields the ids of those that were still here."""
        for chunk in _chunks(ids, REMOVE_CHUNK):
            for keys, here in self._parts(chunk):
                yield self._delete(keys, here)

    def _put_back(self, partition: Keys, ids: Sequence[str]) -> int:
        keys = [partition.stream, partition.volume, partition.dlq, partition.replayed, partition.priority]
        return int(self._link.call(lambda: self._replay(keys=keys, args=ids)))

    def _delete(self, keys: Keys, ids: Sequence[str]) -> list[str]:
        def delete() -> list[Any]:
            pipe = self._link.node_for(keys).pipeline(transaction=False)
            for letter_id in ids:
                pipe.xdel(keys.dlq, letter_id)
            return pipe.execute()

        return [keys.format_entry_id(each) for each, gone in zip(ids, self._link.call(delete), strict=True) if gone]

    def _last_id(self, keys: Keys) -> str:
        last = self._link.call(lambda: self._client.xrevrange(keys.dlq, count=1))
        return _entries(last)[0][0] if last else "0-0"

    def _page(self, keys: Keys, start: str, end: str) -> list[StreamEntry]:
        return _entries(self._link.call(lambda: self._client.xrange(keys.dlq, start, end, count=PAGE)))

    def _exactly(self, keys: Keys, ids: Sequence[str]) -> list[StreamEntry]:
        pipe = self._client.pipeline(transaction=False)
        for letter_id in ids:
            pipe.xrange(keys.dlq, letter_id, letter_id)
        return [
            (keys.format_entry_id(entry_id), fields)
            for found in self._link.call(pipe.execute)
            for entry_id, fields in _entries(found)
        ]

    def _parts(self, ids: Sequence[str]) -> Iterator[tuple[Keys, list[str]]]:
        """The ids by partition; what is of none that there is, is left out."""
        for keys in self._partitions:
            here = [entry_id for partition, entry_id in map(parse_entry_id, ids) if partition == keys.partition]
            if here:
                yield keys, here


def _entries(found: Any) -> list[StreamEntry]:
    return [(letter_id.decode(), fields) for letter_id, fields in found]


def _chunks(ids: Iterable[str], size: int) -> Iterator[list[str]]:
    left = iter(ids)
    while chunk := list(islice(left, size)):
        yield chunk
