"""The worker's side of all partitions: what is due is looked for everywhere, fresh mail is taken from each in turn.

A batch is of one partition, so that it is completed in one step. Only an idle worker waits, for whichever has mail
first: `bell`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import TypeVar

from email_ingestion.stream.connection import RedisLink
from email_ingestion.stream.delivery import Delivery
from email_ingestion.stream.keys import parse_entry_id
from email_ingestion.stream.partition_consumer import PartitionConsumer
from email_ingestion.stream.stream_waiter import StreamWaiter

T = TypeVar("T")


class Consumer:
    """One consumer of every partition's group. Not for several threads, but `hold` may be called from a second one."""

    def __init__(self, link: RedisLink, consumer: str, lease: float) -> None:
        self._link = link
        self._lanes = [PartitionConsumer(link, keys, consumer, lease) for keys in link.partitions]
        self._bell = StreamWaiter(link) if len(self._lanes) > 1 else None
        self._turn = 0  # the lane that is looked at first

    def ensure_group(self) -> None:
        """See `PartitionConsumer`."""
        for lane in self._lanes:
            lane.ensure_group()

    def claim_due(self, most: int, least: int = 0) -> list[Delivery]:
        """See `PartitionConsumer`; of the first partition, in turn, that has something."""
        return self._first(lambda lane: lane.claim_due(most, least))

    def read_urgent(self, most: int, least: int) -> list[Delivery]:
        """See `PartitionConsumer`; of all partitions, so that each of them knows what is to be read around."""
        found: list[Delivery] = []
        for lane in self._lanes:
            if len(found) < most:
                found += lane.read_urgent(most - len(found), least)
        return found

    def read_new(self, most: int, *, block: bool = True) -> list[Delivery]:
        """Up to `most` entries nobody had yet; waits a second for the first one."""
        if self._bell is None:
            return self._lanes[0].read_new(most, block=block)
        found = self._first(lambda lane: lane.read_new(most, block=False))
        if found or not block:
            return found
        self._bell.wait()
        return self._first(lambda lane: lane.read_new(most, block=False))

    def ack(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """See `PartitionConsumer`."""
        parts = _by_partition(deliveries, lambda each: each.id)
        return [lost for partition, part in parts for lost in self._lanes[partition].ack(part)]

    def extend(self, ids: Iterable[str], *, give_back: bool = False) -> set[str]:
        """See `PartitionConsumer`."""
        parts = _by_partition(ids, str)
        return {mine for partition, part in parts for mine in self._lanes[partition].extend(part, give_back=give_back)}

    def release(self, ids: Sequence[str]) -> int:
        """See `PartitionConsumer`."""
        return sum(self._lanes[partition].release(part) for partition, part in _by_partition(ids, str))

    def dead_letter(self, dead: Delivery, obituary: dict[str, str]) -> bool:
        """See `PartitionConsumer`."""
        return self._lanes[parse_entry_id(dead.id)[0]].dead_letter(dead, obituary)

    def recover_orphans(self) -> int:
        """See `PartitionConsumer`."""
        return sum(lane.recover_orphans() for lane in self._lanes)

    def depth(self, least: int = 0) -> int:
        """How many entries are in the streams, waiting or in flight, with a priority of `least` or more."""
        return sum(lane.depth(least) for lane in self._lanes)

    def unregister(self) -> None:
        """See `PartitionConsumer`."""
        for lane in self._lanes:
            lane.unregister()

    def _first(self, take: Callable[[PartitionConsumer], list[Delivery]]) -> list[Delivery]:
        """What the first lane that has something gives; the next time the one after it is asked first."""
        for _ in self._lanes:
            lane = self._lanes[self._turn]
            self._turn = (self._turn + 1) % len(self._lanes)
            if found := take(lane):
                return found
        return []


def _by_partition(things: Iterable[T], spoken: Callable[[T], str]) -> list[tuple[int, list[T]]]:
    def partition(thing: T) -> int:
        return parse_entry_id(spoken(thing))[0]

    return [(number, list(part)) for number, part in groupby(sorted(things, key=partition), key=partition)]
