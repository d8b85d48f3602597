"""Where dead letters lie: found page by page, put back into the stream, or removed.

    stream ──bury (worker)──▶ dead letters ──replay──▶ stream
                                    └──remove──▶ gone

All of it may run twice, at the same time, or be killed anywhere: a letter is put back or removed once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Any

import zstandard

from email_ingestion.errors import PermanentError
from email_ingestion.stream.connection import Link
from email_ingestion.stream.dead_letters import DeadLetter, dead_letter

# An entry holds up to BLOB_THRESHOLD_BYTES, and Redis does nothing else during a call: a page stays below some
# 10 MB, a replay (which copies) below some milliseconds.
PAGE = 50
REPLAY_CHUNK = 20
REMOVE_CHUNK = 500

Entry = tuple[str, dict[bytes, bytes]]


class Graveyard:
    """The dead letters of one partition. Every method raises like `Link.run`, and so do its iterators."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._client = link.client
        self._keys = link.keys
        self._replay = link.script("replay")

    def depth(self) -> int:
        """How many there are."""
        return self._link.run(lambda: int(self._client.xlen(self._keys.dlq)))

    def letters(self, before: datetime | None = None) -> Iterator[DeadLetter]:
        """Those that lie here now and died before then, oldest first; what is buried meanwhile is not among them.

        Without that end, replaying what dies again at once would never be done.
        """
        end = self._last_id()
        if before:
            end = min(end, f"{max(0, int(before.timestamp() * 1000))}-0", key=_order)
        start = "-"
        while page := self._page(start, end):
            for letter_id, fields in page:
                yield dead_letter(letter_id, fields)
            start = f"({page[-1][0]}"

    def find(self, ids: Iterable[str]) -> Iterator[DeadLetter]:
        """Those of these ids that are here."""
        return (dead_letter(letter_id, fields) for letter_id, fields in self.entries(ids))

    def entries(self, ids: Iterable[str]) -> Iterator[Entry]:
        """Id and all fields of those of these ids that are here, payload included, a page of them in memory."""
        for chunk in _chunks(ids, PAGE):
            yield from self._exactly(chunk)

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
            yield self._put_back(chunk)

    def remove(self, ids: Iterable[str]) -> Iterator[list[str]]:
        """Delete letters for good, some at a time; yields the ids of those that were still here."""
        for chunk in _chunks(ids, REMOVE_CHUNK):
            yield self._delete(chunk)

    def _put_back(self, ids: Sequence[str]) -> int:
        keys = [self._keys.stream, self._keys.volume, self._keys.dlq, self._keys.replayed]
        return int(self._link.run(lambda: self._replay(keys=keys, args=ids)))

    def _delete(self, ids: Sequence[str]) -> list[str]:
        pipe = self._client.pipeline(transaction=False)
        for letter_id in ids:
            pipe.xdel(self._keys.dlq, letter_id)
        return [letter_id for letter_id, gone in zip(ids, self._link.run(pipe.execute), strict=True) if gone]

    def _last_id(self) -> str:
        last = self._link.run(lambda: self._client.xrevrange(self._keys.dlq, count=1))
        return _entries(last)[0][0] if last else "0-0"

    def _page(self, start: str, end: str) -> list[Entry]:
        return _entries(self._link.run(lambda: self._client.xrange(self._keys.dlq, start, end, count=PAGE)))

    def _exactly(self, ids: Sequence[str]) -> list[Entry]:
        pipe = self._client.pipeline(transaction=False)
        for letter_id in ids:
            pipe.xrange(self._keys.dlq, letter_id, letter_id)
        return [entry for found in self._link.run(pipe.execute) for entry in _entries(found)]


def _entries(found: Any) -> list[Entry]:
    return [(letter_id.decode(), fields) for letter_id, fields in found]


def _order(letter_id: str) -> tuple[int, int]:
    milliseconds, _, number = letter_id.partition("-")
    return int(milliseconds), int(number)


def _chunks(ids: Iterable[str], size: int) -> Iterator[list[str]]:
    left = iter(ids)
    while chunk := list(islice(left, size)):
        yield chunk
