"""Appends messages that were found missing below a cursor, which stays where it is."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import zstandard

from email_ingestion.records import RawMessage
from email_ingestion.stream.codec import ZSTD_LEVEL, encode, pack_entries
from email_ingestion.stream.connection import RedisLink


class Gaps:
    """Fills those of one account. Each thread needs its own.

    With a `holder` it does so only while the account's lease says that name, see `leases`.
    """

    def __init__(self, link: RedisLink, account: str, holder: str = "") -> None:
        self._link = link
        self._account = account
        self._holder = holder
        self._script = link.script("fill_gap")
        self._compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)

    def fill(self, messages: Sequence[RawMessage], seen: str) -> int:
        """Append those of `messages` whose identity did not come into the stream behind the entry id `seen`.

        Up to `seen` (`census.BEGINNING` for nothing) the caller has looked itself. Returns how many were added; a
        repetition with the same `seen` adds none. Raises LeaseLost and what `RedisLink.call` raises.
        """
        now = datetime.now(UTC)
        entries = [(each.envelope.email_id, encode(each, now, self._compressor)) for each in messages]
        args = [seen, self._holder, *pack_entries(entries)]
        partition = self._link.keys_for(self._account)
        keys = [partition.stream, partition.volume, partition.priority, partition.lease(self._account)]
        return int(self._link.call(lambda: self._script(keys=keys, args=args))) if messages else 0
