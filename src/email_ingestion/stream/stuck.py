"""What somebody has taken and not completed, and who has: for operators who must set it free.

    pending, X's ──let_go──▶ pending, due for anybody       X gone and nothing left ──prune──▶ gone from the group
         └─────────bury────▶ dead letter

Nothing here drops a pending entry: it stays in the stream or becomes a dead letter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import ResponseError

from email_ingestion.stream.connection import Link, missing_group, text
from email_ingestion.stream.dead_letters import identity, obituary
from email_ingestion.stream.keys import GROUP

PAGE = 100
LONG_AGO = 7 * 86_400_000  # milliseconds; longer than any lease and any back-off


@dataclass(frozen=True, slots=True)
class Stuck:
    """A pending entry."""

    id: str
    email_id: str  # `entry:ID` where it does not tell
    consumer: str
    age_seconds: float  # since it entered the stream
    idle_seconds: float  # since its worker last touched it, which one that hangs over it goes on doing
    deliveries: int
    wire_bytes: int  # of its fields; -1 when its payload is gone


@dataclass(frozen=True, slots=True)
class Consumer:
    """A name in the group."""

    name: str
    pending: int
    idle_seconds: float  # since it last took or tried to take something
    alive: bool  # whether a process of that name says so


class Stucks:
    """The pending entries and the consumers of one partition. Every method and iterator raises like `Link.run`."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._keys = link.keys
        self._stuck = link.script("stuck")
        self._let_go = link.script("let_go")
        self._prune = link.script("prune")
        self._bury = link.script("bury")

    def entries(self, *, consumer: str = "", idle_seconds: float = 0) -> Iterator[Stuck]:
        """Those of a consumer, or of all, that have been idle for so long; oldest first."""
        start = "-"
        while page := self._page(start, consumer, int(idle_seconds * 1000)):
            yield from page
            start = f"({page[-1].id}"

    def let_go(self, stuck: Sequence[Stuck]) -> int:
        """Make entries due at once for any worker; returns how many were still their consumer's."""
        args: list[str | int] = [GROUP, LONG_AGO]
        for each in stuck:
            args += [each.id, each.consumer]
        return int(self._asked(lambda: self._let_go(keys=[self._keys.stream], args=args), 0)) if stuck else 0

    def bury(self, stuck: Stuck, instance: str) -> str | None:
        """Make an entry a dead letter with the reason `operator`; its id there, None when it was no longer there."""
        args: list[str | int] = [GROUP, stuck.consumer, stuck.id, max(0, stuck.wire_bytes)]
        for name, value in obituary("operator", stuck.deliveries, None, "", instance).items():
            args += [name, value]
        keys = [self._keys.stream, self._keys.volume, self._keys.dlq]
        letter = self._asked(lambda: self._bury(keys=keys, args=args), None)
        return text(letter) if letter else None

    def consumers(self) -> list[Consumer]:
        """Everybody in the group, by name."""
        found = self._asked(lambda: self._link.client.xinfo_consumers(self._keys.stream, GROUP), [])
        names = [text(each["name"]) for each in found]
        alive = (
            self._link.run(lambda: self._link.client.mget([self._keys.alive(name) for name in names])) if names else []
        )
        return [
            Consumer(name, int(each["pending"]), int(each["idle"]) / 1000, present is not None)
            for name, each, present in sorted(zip(names, found, alive, strict=True), key=lambda one: one[0])
        ]

    def prune(self, consumer: str) -> bool:
        """Take a consumer out of the group; False when it holds something, lives, or is gone already."""
        keys = [self._keys.stream, self._keys.alive(consumer)]
        return bool(self._asked(lambda: self._prune(keys=keys, args=[GROUP, consumer]), 0))

    def _page(self, start: str, consumer: str, idle: int) -> list[Stuck]:
        args: list[str | int] = [GROUP, idle, start, PAGE, consumer]
        rows = self._asked(lambda: self._stuck(keys=[self._keys.stream], args=args), [])
        return [_entry(row) for row in rows]

    def _asked(self, call: Any, nothing: Any) -> Any:
        """The result of `call`; `nothing` where there is no stream or no group."""

        def attempt() -> Any:
            try:
                return call()
            except ResponseError as error:
                if missing_group(error) or "no such key" in str(error):
                    return nothing
                raise

        return self._link.run(attempt)


def _entry(row: list[Any]) -> Stuck:
    entry_id, consumer = text(row[0]), text(row[1])
    said = {"account": text(row[4]), "gm_msgid": text(row[5]), "sha256": text(row[6])}
    email_id = identity(said) or f"entry:{entry_id}"
    return Stuck(entry_id, email_id, consumer, row[8] / 1000, row[2] / 1000, row[3], row[7])
