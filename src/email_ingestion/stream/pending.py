"""What somebody has taken and not completed, and who has: for operators who must set it free.

    pending, X's ──let_go──▶ pending, due for anybody       X gone and nothing left ──prune──▶ gone from the group
         └─────────bury────▶ dead letter

Nothing here drops a pending entry: it stays in the stream or becomes a dead letter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import merge
from typing import Any

from redis.exceptions import ResponseError

from email_ingestion.stream.connection import RedisLink, is_group_missing, text
from email_ingestion.stream.dead_letters import dead_letter_fields, message_identity
from email_ingestion.stream.keys import GROUP, Keys, entry_order, parse_entry_id

PAGE = 100
GONE, KEPT = -1, 0  # what `prune` says of a consumer that is not there, and of one that stays
LONG_AGO = 7 * 86_400_000  # milliseconds; longer than any lease and any back-off


@dataclass(frozen=True, slots=True)
class PendingEntry:
    """A pending entry."""

    id: str  # as `Keys.format_entry_id` makes it
    email_id: str  # `entry:ID` where it does not tell
    consumer: str
    age_seconds: float  # since it entered the stream
    idle_seconds: float  # since its worker last touched it, which one that hangs over it goes on doing
    deliveries: int
    wire_bytes: int  # of its fields; -1 when its payload is gone


@dataclass(frozen=True, slots=True)
class ConsumerInfo:
    """A name in the group."""

    name: str
    pending: int
    idle_seconds: float  # since it last took or tried to take something
    alive: bool  # whether a process of that name says so


class PendingEntries:
    """The pending entries and the consumers of all partitions. Methods and iterators raise like `RedisLink.call`."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._partitions = link.partitions
        self._stuck = link.script("stuck")
        self._let_go = link.script("let_go")
        self._prune = link.script("prune")
        self._bury = link.script("bury")

    def entries(self, *, consumer: str = "", idle_seconds: float = 0) -> Iterator[PendingEntry]:
        """Those of a consumer, or of all, that have been idle for so long; oldest first."""
        milliseconds = int(idle_seconds * 1000)
        found = (self._of_partition(keys, consumer, milliseconds) for keys in self._partitions)
        return merge(*found, key=lambda each: entry_order(each.id))

    def _of_partition(self, keys: Keys, consumer: str, idle: int) -> Iterator[PendingEntry]:
        start = "-"
        while page := self._page(keys, start, consumer, idle):
            yield from page
            start = f"({parse_entry_id(page[-1].id)[1]}"

    def release(self, stuck: Sequence[PendingEntry]) -> int:
        """Make entries due at once for any worker; returns how many were still their consumer's."""
        freed = 0
        for keys in self._partitions:
            args: list[str | int] = [GROUP, LONG_AGO]
            for each in stuck:
                partition, entry_id = parse_entry_id(each.id)
                args += [entry_id, each.consumer] if partition == keys.partition else []
            if len(args) > len((GROUP, LONG_AGO)):
                freed += int(self._asked(partial(self._let_go, keys=[keys.stream], args=args), 0))
        return freed

    def dead_letter(self, stuck: PendingEntry, instance: str) -> str | None:
        """Make an entry a dead letter with the reason `operator`; its id there, None when it was no longer there."""
        partition, entry_id = parse_entry_id(stuck.id)
        args: list[str | int] = [GROUP, stuck.consumer, entry_id, max(0, stuck.wire_bytes)]
        for name, value in dead_letter_fields("operator", stuck.deliveries, None, "", instance).items():
            args += [name, value]
        there = self._partitions[partition]
        keys = [there.stream, there.volume, there.dlq, there.priority]
        letter = self._asked(lambda: self._bury(keys=keys, args=args), None)
        return there.format_entry_id(text(letter)) if letter else None

    def consumers(self) -> list[ConsumerInfo]:
        """Everybody in a group, by name."""
        pending: Counter[str] = Counter()
        idle: dict[str, int] = {}
        for keys in self._partitions:
            for each in self._asked(partial(self._link.client.xinfo_consumers, keys.stream, GROUP), []):
                name = text(each["name"])
                pending[name] += int(each["pending"])
                idle[name] = min(int(each["idle"]), idle.get(name, int(each["idle"])))
        names = sorted(idle)
        presences = [self._link.keys.alive(name) for name in names]
        alive = self._link.call(lambda: self._link.client.mget(presences)) if names else []
        return [
            ConsumerInfo(name, pending[name], idle[name] / 1000, present is not None)
            for name, present in zip(names, alive, strict=True)
        ]

    def prune(self, consumer: str) -> bool:
        """Take a consumer out of every group; False when it holds something, lives, or is gone already."""
        if self._link.call(lambda: self._link.client.exists(self._link.keys.alive(consumer))):
            return False
        gone = [
            self._asked(partial(self._prune, keys=[keys.stream, keys.alive(consumer)], args=[GROUP, consumer]), GONE)
            for keys in self._partitions
        ]
        return KEPT not in gone and any(each != GONE for each in gone)

    def _page(self, keys: Keys, start: str, consumer: str, idle: int) -> list[PendingEntry]:
        args: list[str | int] = [GROUP, idle, start, PAGE, consumer]
        rows = self._asked(lambda: self._stuck(keys=[keys.stream], args=args), [])
        return [_entry(keys, row) for row in rows]

    def _asked(self, call: Any, nothing: Any) -> Any:
        """The result of `call`; `nothing` where there is no stream or no group."""

        def attempt() -> Any:
            try:
                return call()
            except ResponseError as error:
                if is_group_missing(error) or "no such key" in str(error):
                    return nothing
                raise

        return self._link.call(attempt)


def _entry(keys: Keys, row: list[Any]) -> PendingEntry:
    entry_id, consumer = text(row[0]), text(row[1])
    said = {"account": text(row[4]), "gm_msgid": text(row[5]), "sha256": text(row[6])}
    spoken = keys.format_entry_id(entry_id)
    email_id = message_identity(said) or f"entry:{spoken}"
    return PendingEntry(spoken, email_id, consumer, row[8] / 1000, row[2] / 1000, row[3], row[7])
