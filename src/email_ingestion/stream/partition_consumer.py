"""The worker's side of one partition: take, hold, complete, release, bury.

    fresh ──take──▶ pending, mine ──complete──▶ gone
                        │  ▲   └────bury─────▶ dead letter
        hold (back-off) ▼  │ take, when due
                      pending ◀── release, or a crash and the lease

Retry and recovery are one mechanism: whatever was not completed stays pending, Redis keeps its idle time and its
delivery count, and `take` hands it out again when it is due.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from redis.exceptions import ResponseError

from email_ingestion.backoff import backoff
from email_ingestion.records import NORMAL_PRIORITY
from email_ingestion.stream.clients import BLOCK_SECONDS
from email_ingestion.stream.clock import RedisClock
from email_ingestion.stream.connection import RedisLink, is_group_missing
from email_ingestion.stream.delivery import Delivery, decode_delivery
from email_ingestion.stream.keys import GROUP, Keys, parse_entry_id

# Back-off by deliveries, for the take_overdue script; its last value holds for all that follow.
BACKOFF_STEPS = 12


class PartitionConsumer:
    """One consumer of the group. Not for several threads, but `hold` may be called from a second one."""

    def __init__(self, link: RedisLink, keys: Keys, consumer: str, lease: float) -> None:
        self._link = link
        self._client = link.client
        self._keys = keys
        self._consumer = consumer
        self._lease_ms = int(lease * 1000)
        self._steps = [int(backoff(n) * 1000) for n in range(1, BACKOFF_STEPS + 1)]
        self._take_ahead = link.script("take_ahead")
        self._take_around = link.script("take_around")
        self._take_overdue = link.script("take_overdue")
        self._complete = link.script("complete")
        self._hold = link.script("hold")
        self._release = link.script("release")
        self._bury = link.script("bury")
        self._adopt = link.script("adopt")
        self._restamp = link.script("restamp")
        self._clock = RedisClock()
        self._around = False

    def ensure_group(self) -> None:
        """Create stream and group where they are missing; from 0, for `$` would pass over what is already there."""
        self._link.call(self._create_group)

    def claim_due(self, most: int, least: int = 0) -> list[Delivery]:
        """Take over what is due: one suspect alone, or up to `most` entries that were given back untouched.

        What has a priority below `least` is left as it is.
        """
        self._look_at_the_clock()
        args: list[str | int] = [GROUP, self._consumer, self._lease_ms, most, least, *self._steps]
        found = self._with_group(lambda: self._take_overdue(keys=[self._keys.stream, self._keys.priority], args=args))
        return [
            decode_delivery(self._keys, i, int(count), fields, foreign=bool(foreign))
            for i, count, fields, foreign in found
        ]

    def read_urgent(self, most: int, least: int) -> list[Delivery]:
        """Up to `most` entries nobody had yet with a priority of `least` or more, which is above the normal one."""
        keys = [self._keys.stream, self._keys.priority]
        args: list[str | int] = [GROUP, self._consumer, most, least]
        held, found = self._with_group(lambda: self._take_ahead(keys=keys, args=args)) or (0, [])
        self._around = bool(held)
        return [decode_delivery(self._keys, i, 1, fields, foreign=False) for i, fields in found]

    def read_new(self, most: int, *, block: bool = True) -> list[Delivery]:
        """Up to `most` entries nobody had yet; waits a second for the first one.

        Call `ahead` before: it finds out whether there is something to be read around.
        """
        if self._around:
            args: list[str | int] = [GROUP, self._consumer, most]
            beside = self._with_group(lambda: self._take_around(keys=[self._keys.stream], args=args))
            if beside or not block:
                return [decode_delivery(self._keys, i, 1, fields, foreign=False) for i, fields in beside]
        milliseconds = int(BLOCK_SECONDS * 1000) if block else None
        streams: dict[Any, Any] = {self._keys.stream: ">"}
        found = self._with_group(
            lambda: self._client.xreadgroup(GROUP, self._consumer, streams, count=most, block=milliseconds)
        )
        return [
            decode_delivery(self._keys, i, 1, flat(fields), foreign=False)
            for i, fields in (found[0][1] if found else [])
        ]

    def ack(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Take entries out of the stream; returns those that were no longer ours: somebody took them over."""
        args: list[str | int] = [GROUP, self._consumer]
        for each in deliveries:
            args += [parse_entry_id(each.id)[1], each.wire_bytes]
        keys = [self._keys.stream, self._keys.volume, self._keys.priority]
        done = self._of_group(lambda: self._complete(keys=keys, args=args), [0] * len(deliveries)) if deliveries else []
        return [each for each, ours in zip(deliveries, done, strict=True) if not ours]

    def extend(self, ids: Iterable[str], *, give_back: bool = False) -> set[str]:
        """Start the idle time of entries anew: a heartbeat, or a back-off; returns those that are still ours.

        `give_back` takes the delivery back: the entry was not touched, this was no attempt.
        """
        args: list[str | int] = [GROUP, self._consumer, int(give_back), *_entries(ids)]
        mine = self._of_group(lambda: self._hold(keys=[self._keys.stream], args=args), [])
        return {self._keys.format_entry_id(each.decode()) for each in mine}

    def release(self, ids: Sequence[str]) -> int:
        """Give untouched entries back to whoever comes first; returns how many were still ours."""
        args: list[str | int] = [GROUP, self._consumer, self._lease_ms, *_entries(ids)]
        return int(self._of_group(lambda: self._release(keys=[self._keys.stream], args=args), 0)) if ids else 0

    def dead_letter(self, dead: Delivery, obituary: dict[str, str]) -> bool:
        """Move an entry to the dead letters with what is known of its death; False when it was no longer ours."""
        args: list[str | int] = [GROUP, self._consumer, parse_entry_id(dead.id)[1], dead.wire_bytes]
        for name, value in obituary.items():
            args += [name, value]
        keys = [self._keys.stream, self._keys.volume, self._keys.dlq, self._keys.priority]
        return bool(self._of_group(lambda: self._bury(keys=keys, args=args), None))

    def recover_orphans(self) -> int:
        """Make pending what Redis took for handed out and forgot to whom; returns how many entries there were.

        Two power cuts in mid-transaction do that to Redis 7.0. Cheap where there are none; `overdue` hands them out.
        """
        found, start = 0, "-"
        while start:
            args: list[str | int] = [GROUP, self._consumer, self._lease_ms, start]
            here, *going_on = self._of_group(partial(self._adopt, keys=[self._keys.stream], args=args), [0])
            found, start = found + int(here), going_on[0].decode() if going_on else ""
        return found

    def depth(self, least: int = 0) -> int:
        """How many entries are in the stream, waiting or in flight, with a priority of `least` or more."""

        def count() -> int:
            pipe = self._client.pipeline(transaction=False)
            pipe.xlen(self._keys.stream)
            pipe.zcount(self._keys.priority, "-inf", -least)
            pipe.zcount(self._keys.priority, f"({-least}", "+inf")
            depth, above, below = pipe.execute()
            return int(above if least > NORMAL_PRIORITY else depth - below)

        return self._link.call(count)

    def unregister(self) -> None:
        """Take the consumer out of the group, only while nothing is pending under its name."""
        self._of_group(self._unregister, None)

    def _unregister(self) -> None:
        # DELCONSUMER drops what is pending, silently: two steps are safe because only this process reads by the name.
        if not self._client.xpending_range(self._keys.stream, GROUP, "-", "+", 1, consumername=self._consumer):
            self._client.xgroup_delconsumer(self._keys.stream, GROUP, self._consumer)

    def _look_at_the_clock(self) -> None:
        seconds, microseconds = self._link.call(lambda: self._link.node_for(self._keys).time())
        if self._clock.went_back(seconds + microseconds / 1e6):
            self._of_group(lambda: self._restamp(keys=[self._keys.stream], args=[GROUP]), None)

    def _create_group(self) -> None:
        try:
            self._client.xgroup_create(self._keys.stream, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    def _of_group(self, call: Callable[[], Any], nothing: Any, otherwise: Callable[[], None] = lambda: None) -> Any:
        """The result of `call`; `nothing` when somebody removed the group, and with it all that was ours."""

        def attempt() -> Any:
            try:
                return call()
            except ResponseError as error:
                if not is_group_missing(error):
                    raise
                otherwise()
                return nothing

        return self._link.call(attempt)

    def _with_group(self, read: Callable[[], Any]) -> Any:
        """What `read` took; nothing when the group had to be made again first."""
        return self._of_group(read, None, otherwise=self._create_group) or []


def _entries(ids: Iterable[str]) -> list[str]:
    return [parse_entry_id(each)[1] for each in ids]


def flat(fields: dict[bytes, bytes]) -> list[bytes]:
    """Names and values in turn, as scripts give them."""
    return [part for item in fields.items() for part in item]
