"""Pending entries and the consumers that have them: for operators who must set stuck work free.

    pending, X's ──release──▶ pending, due for anybody       X gone and nothing left ──prune──▶ gone from the group
         └─────dead_letter──▶ dead letter

Nothing here drops a pending entry: it stays in the stream or becomes a dead letter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import merge
from typing import Any

from redis.exceptions import ResponseError

from email_ingestion.stream.dead_letters import dead_letter_fields, message_identity
from email_ingestion.stream.gauges import forget_process
from email_ingestion.stream.keys import GROUP, Keys, entry_order, parse_entry_id
from email_ingestion.stream.redis_link import RedisLink, is_group_missing, text

PAGE = 100
MISSING, KEPT = -1, 0  # what prune_consumer returns of a consumer that does not exist, and of one that stays
LONG_AGO = 7 * 86_400_000  # milliseconds; longer than any lease and any back-off


@dataclass(frozen=True, slots=True)
class PendingEntry:
    """An entry that was delivered and is without an ack."""

    id: str  # as `Keys.format_entry_id` makes it
    email_id: str  # `entry:ID` where the fields do not tell
    consumer: str
    age_seconds: float  # since it entered the stream
    idle_seconds: float  # since its worker last extended it, which one that hangs over it goes on doing
    deliveries: int
    wire_bytes: int  # of its fields; -1 when its payload is gone


@dataclass(frozen=True, slots=True)
class ConsumerInfo:
    """A consumer of the group."""

    name: str
    pending: int
    idle_seconds: float  # since its last read or claim, also an empty one
    alive: bool  # whether a process of that name announces its presence


class PendingEntries:
    """The pending entries and the consumers of all partitions. Methods and iterators raise like `RedisLink.call`."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._partitions = link.partitions
        self._list = link.script("list_pending")
        self._release = link.script("release_pending")
        self._prune = link.script("prune_consumer")
        self._dead_letter = link.script("dead_letter")

    def entries(self, *, consumer: str = "", idle_seconds: float = 0) -> Iterator[PendingEntry]:
        """Yield the entries of a consumer, or of all, that have been idle for so long; oldest first."""
        milliseconds = int(idle_seconds * 1000)
        found = (self._of_partition(keys, consumer, milliseconds) for keys in self._partitions)
        return merge(*found, key=lambda entry: entry_order(entry.id))

    def _of_partition(self, keys: Keys, consumer: str, idle: int) -> Iterator[PendingEntry]:
        start = "-"
        while page := self._page(keys, start, consumer, idle):
            yield from page
            start = f"({parse_entry_id(page[-1].id)[1]}"

    def release(self, entries: Sequence[PendingEntry]) -> int:
        """Make entries due at once for any worker; return how many were still their consumer's."""
        released = 0
        for keys in self._partitions:
            parsed = [(parse_entry_id(entry.id), entry.consumer) for entry in entries]
            args = [arg for (at, entry_id), name in parsed if at == keys.partition for arg in (entry_id, name)]
            if args:
                call = partial(self._release, keys=[keys.stream], args=[GROUP, LONG_AGO, *args])
                released += int(self._in_group(call, 0))
        return released

    def dead_letter(self, entry: PendingEntry, instance: str) -> str | None:
        """Make an entry a dead letter with the reason `operator`; return its id there, None when it was gone."""
        partition, entry_id = parse_entry_id(entry.id)
        args: list[str | int] = [GROUP, entry.consumer, entry_id, max(0, entry.wire_bytes)]
        for name, value in dead_letter_fields("operator", entry.deliveries, None, "", instance).items():
            args += [name, value]
        there = self._partitions[partition]
        keys = [there.stream, there.volume, there.dlq, there.priority]
        dead_letter_id = self._in_group(lambda: self._dead_letter(keys=keys, args=args), None)
        return there.format_entry_id(text(dead_letter_id)) if dead_letter_id else None

    def consumers(self) -> list[ConsumerInfo]:
        """Return the consumers of all groups, by name."""
        pending: Counter[str] = Counter()
        idle: dict[str, int] = {}
        for keys in self._partitions:
            for consumer in self._in_group(partial(self._link.client.xinfo_consumers, keys.stream, GROUP), []):
                name = text(consumer["name"])
                pending[name] += int(consumer["pending"])
                idle[name] = min(int(consumer["idle"]), idle.get(name, int(consumer["idle"])))
        names = sorted(idle)
        presences = [self._link.keys.alive(name) for name in names]
        alive = self._link.call(lambda: self._link.client.mget(presences)) if names else []
        return [
            ConsumerInfo(name, pending[name], idle[name] / 1000, present is not None)
            for name, present in zip(names, alive, strict=True)
        ]

    def prune(self, consumer: str) -> bool:
        """Remove a consumer from every group; False when it has pending entries, is alive, or is gone already.

        A process whose consumer is removed no longer counts as one that should run.
        """
        if self._link.call(lambda: self._link.client.exists(self._link.keys.alive(consumer))):
            return False
        pruned = [
            self._in_group(
                partial(self._prune, keys=[keys.stream, keys.alive(consumer)], args=[GROUP, consumer]), MISSING
            )
            for keys in self._partitions
        ]
        if KEPT in pruned:
            return False
        forget_process(self._link, consumer)
        return any(result != MISSING for result in pruned)

    def _page(self, keys: Keys, start: str, consumer: str, idle: int) -> list[PendingEntry]:
        args: list[str | int] = [GROUP, idle, start, PAGE, consumer]
        rows = self._in_group(lambda: self._list(keys=[keys.stream], args=args), [])
        return [_entry(keys, row) for row in rows]

    def _in_group(self, operation: Callable[[], Any], default: Any) -> Any:
        """Return the result of `operation`; `default` where there is no stream or no group."""

        def attempt() -> Any:
            try:
                return operation()
            except ResponseError as error:
                if is_group_missing(error) or "no such key" in str(error):
                    return default
                raise

        return self._link.call(attempt)


def _entry(keys: Keys, row: list[Any]) -> PendingEntry:
    entry_id, consumer = text(row[0]), text(row[1])
    formatted_id = keys.format_entry_id(entry_id)
    fields = {"account": text(row[4]), "gm_msgid": text(row[5]), "sha256": text(row[6])}
    email_id = message_identity(fields) or f"entry:{formatted_id}"
    return PendingEntry(formatted_id, email_id, consumer, row[8] / 1000, row[2] / 1000, row[3], row[7])
