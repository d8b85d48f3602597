"""The worker's side of the stream: read, claim, extend, ack, release, dead-letter, over all partitions.

    new ──read──▶ pending, mine ──ack──▶ gone
                      │  ▲   └────dead_letter───▶ dead letter
     extend (back-off)▼  │ claim_due
                    pending ◀── release, or a crash and the lease

Retry and recovery are one mechanism: an entry without an ack stays pending, Redis keeps its idle time and its
delivery count, and `claim_due` delivers it again when it is due.

Due entries are searched for in every partition, new ones are read from each in turn. A batch is of one partition, so
that a single script acks it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from functools import partial
from itertools import groupby
from typing import Any, TypeVar, cast

import redis
from redis.exceptions import ResponseError

from email_ingestion.background import BackgroundThread
from email_ingestion.backoff import backoff
from email_ingestion.errors import TransientError
from email_ingestion.records import NORMAL_PRIORITY
from email_ingestion.stream.clients import BLOCK_SECONDS, LazyCluster
from email_ingestion.stream.codec import MAX_INLINE_BYTES, VERSION, Delivery, decode_delivery
from email_ingestion.stream.keys import GROUP, NEWER_RELEASE, SLOW_MAIL, Keys, parse_entry_id
from email_ingestion.stream.redelivery import EntryAttempts, RedisClock
from email_ingestion.stream.redis_link import RedisLink, is_group_missing, text

T = TypeVar("T")

# Back-off by deliveries, for the script claim_due; its last value holds for all that follow.
BACKOFF_STEPS = 12


class Consumer:
    """One consumer of every partition's group.

    Not thread-safe, but `extend` may be called from a second thread. Every method raises like `RedisLink.call`.
    """

    def __init__(self, link: RedisLink, name: str, lease: float, max_inline: int = MAX_INLINE_BYTES) -> None:
        """`name` is the consumer's in the group; `lease` the idle seconds after which others may claim its entries.

        `max_inline` is the largest message, in bytes, that an entry may hold itself.
        """
        self._partitions = [_PartitionConsumer(link, keys, name, lease, max_inline) for keys in link.partitions]
        self._waiter = _StreamWaiter(link) if len(self._partitions) > 1 else None
        self._next_partition = 0

    def ensure_group(self) -> None:
        """Create stream and group where they are missing; from 0, for `$` would skip the entries that are there."""
        for consumer in self._partitions:
            consumer.ensure_group()

    def claim_due(self, limit: int, min_priority: int = 0) -> list[Delivery]:
        """Claim due entries of one partition: a single suspect, or up to `limit` that were given back untouched.

        Entries of a priority below `min_priority` are left as they are.
        """
        return self._from_one_partition(lambda consumer: consumer.claim_due(limit, min_priority))

    def read_urgent(self, limit: int, min_priority: int) -> list[Delivery]:
        """Read up to `limit` new entries of a priority of at least `min_priority`, which is above the normal one."""
        found: list[Delivery] = []
        for consumer in self._partitions:  # all of them, to learn whether `read_new` must pass over such entries
            if len(found) < limit:
                found += consumer.read_urgent(limit - len(found), min_priority)
        return found

    def read_new(self, limit: int, *, block: bool = True) -> list[Delivery]:
        """Read up to `limit` new entries of one partition; with `block` wait up to a second for the first one."""
        if self._waiter is None:
            return self._partitions[0].read_new(limit, block=block)
        found = self._from_one_partition(lambda consumer: consumer.read_new(limit, block=False))
        if found or not block:
            return found
        self._waiter.wait_any()
        return self._from_one_partition(lambda consumer: consumer.read_new(limit, block=False))

    def ack(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Remove entries from the stream; return those that another consumer had claimed meanwhile."""
        parts = _by_partition(deliveries, lambda delivery: delivery.id)
        return [lost for partition, part in parts for lost in self._partitions[partition].ack(part)]

    def extend(self, ids: Iterable[str], *, give_back: bool = False) -> set[str]:
        """Restart the idle time of entries, as heartbeat or back-off; return the ids that are still this consumer's.

        `give_back` takes the delivery back: the entry was not touched, this was no attempt.
        """
        parts = _by_partition(ids, str)
        return {
            mine for partition, part in parts for mine in self._partitions[partition].extend(part, give_back=give_back)
        }

    def release(self, ids: Sequence[str]) -> int:
        """Give untouched entries back so that any consumer may claim them at once; return how many were still mine."""
        return sum(self._partitions[partition].release(part) for partition, part in _by_partition(ids, str))

    def dead_letter(self, delivery: Delivery, fields: dict[str, str]) -> bool:
        """Move an entry to the dead letters with `dead_letter_fields`; False when another consumer has claimed it."""
        return self._partitions[parse_entry_id(delivery.id)[0]].dead_letter(delivery, fields)

    def leave_to_newer(self, delivery: Delivery) -> None:
        """Leave an entry that only a newer release can read pending for that one; it spends no attempt."""
        self._partitions[parse_entry_id(delivery.id)[0]].leave_to(NEWER_RELEASE, delivery)

    def put_aside(self, delivery: Delivery) -> None:
        """Let an entry wait for the time of a lease, whatever worker claims it then; it spends no attempt."""
        self._partitions[parse_entry_id(delivery.id)[0]].leave_to(SLOW_MAIL, delivery)

    def recover_orphans(self) -> int:
        """Make entries pending that Redis delivered and forgot to whom; return how many there were.

        Two power cuts in the middle of a transaction do that to Redis 7.0. Cheap where there are none; `claim_due`
        delivers them.
        """
        return sum(consumer.recover_orphans() for consumer in self._partitions)

    def depth(self, min_priority: int = 0) -> int:
        """Return the number of entries, waiting or in flight, with a priority of at least `min_priority`."""
        return sum(consumer.depth(min_priority) for consumer in self._partitions)

    def unregister(self) -> None:
        """Remove the consumer from the groups in which nothing is pending under its name."""
        for consumer in self._partitions:
            consumer.unregister()

    def _from_one_partition(self, take: Callable[[_PartitionConsumer], list[Delivery]]) -> list[Delivery]:
        """Return the entries of the first partition that has some; the next call starts with the one after it."""
        for _ in self._partitions:
            consumer = self._partitions[self._next_partition]
            self._next_partition = (self._next_partition + 1) % len(self._partitions)
            if found := take(consumer):
                return found
        return []


def _by_partition(items: Iterable[T], id_of: Callable[[T], str]) -> list[tuple[int, list[T]]]:
    def partition(item: T) -> int:
        return parse_entry_id(id_of(item))[0]

    return [(number, list(part)) for number, part in groupby(sorted(items, key=partition), key=partition)]


class _PartitionConsumer:
    """The consumer of one partition's group, with the methods of `Consumer`."""

    def __init__(self, link: RedisLink, keys: Keys, name: str, lease: float, max_inline: int) -> None:
        self._link = link
        self._client = link.client
        self._keys = keys
        self._name = name
        self._lease_ms = int(lease * 1000)
        self._max_inline = max_inline
        self._backoff_ms = [int(backoff(n) * 1000) for n in range(1, BACKOFF_STEPS + 1)]
        self._read_urgent = link.script("read_urgent")
        self._read_around_urgent = link.script("read_around_urgent")
        self._claim_due = link.script("claim_due")
        self._ack = link.script("ack")
        self._extend = link.script("extend")
        self._release = link.script("release")
        self._dead_letter = link.script("dead_letter")
        self._leave_to = link.script("leave_to")
        self._recover_orphans = link.script("recover_orphans")
        self._restart_idle = link.script("restart_idle")
        self._count_loss = link.script("count_loss")
        self._clock = RedisClock()
        self._attempts = EntryAttempts()
        self._had_group = False  # the group was there in the life of this object
        self._has_urgent = False  # entries that were read before their turn, and that `read_new` must pass over

    def ensure_group(self) -> None:
        self._link.call(self._create_group)

    def claim_due(self, limit: int, min_priority: int) -> list[Delivery]:
        self._check_clock()
        args: list[str | int] = [GROUP, self._name, self._lease_ms, limit, min_priority, NEWER_RELEASE, VERSION]
        args += self._backoff_ms
        keys = [self._keys.stream, self._keys.priority]
        with self._attempts.counting_lost_answers():
            claimed = self._with_group(lambda: self._claim_due(keys=keys, args=args))
        return [
            self._delivery(entry_id, int(count), fields, foreign=bool(foreign))
            for entry_id, count, fields, foreign in claimed
        ]

    def _delivery(self, entry_id: bytes, count: int, fields: list[bytes], *, foreign: bool) -> Delivery:
        attempt = self._attempts.delivered(entry_id.decode(), count, foreign=foreign)
        if attempt < count:  # another life of this worker knows only what Redis counts
            args: list[str | int] = [GROUP, self._name, count - attempt, entry_id.decode()]
            with suppress(TransientError):
                self._in_group(lambda: self._extend(keys=[self._keys.stream], args=args), None)
        return decode_delivery(self._keys, entry_id, attempt, fields, foreign=foreign, max_inline=self._max_inline)

    def read_urgent(self, limit: int, min_priority: int) -> list[Delivery]:
        keys = [self._keys.stream, self._keys.priority]
        args: list[str | int] = [GROUP, self._name, limit, min_priority]
        in_flight, found = self._with_group(lambda: self._read_urgent(keys=keys, args=args)) or (0, [])
        self._has_urgent = bool(in_flight)
        return self._deliveries(found)

    def read_new(self, limit: int, *, block: bool) -> list[Delivery]:
        """Call `read_urgent` before: it finds out whether there are entries to pass over."""
        if self._has_urgent:
            args: list[str | int] = [GROUP, self._name, limit]
            around = self._with_group(lambda: self._read_around_urgent(keys=[self._keys.stream], args=args))
            if around or not block:
                return self._deliveries(around)
        milliseconds = int(BLOCK_SECONDS * 1000) if block else None
        streams: dict[Any, Any] = {self._keys.stream: ">"}
        found = self._with_group(
            lambda: self._client.xreadgroup(GROUP, self._name, streams, count=limit, block=milliseconds)
        )
        entries = found[0][1] if found else []
        return self._deliveries([(entry_id, _flat(fields)) for entry_id, fields in entries])

    def _deliveries(self, entries: Iterable[tuple[bytes, list[bytes]]]) -> list[Delivery]:
        return [self._delivery(entry_id, 1, fields, foreign=False) for entry_id, fields in entries]

    def ack(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        args: list[str | int] = [GROUP, self._name]
        for delivery in deliveries:
            args += [parse_entry_id(delivery.id)[1], delivery.wire_bytes]
        keys = [self._keys.stream, self._keys.volume, self._keys.priority]
        acked = self._in_group(lambda: self._ack(keys=keys, args=args), [0] * len(deliveries))
        self._attempts.forget(args[2::2])
        return [delivery for delivery, mine in zip(deliveries, acked, strict=True) if not mine]

    def extend(self, ids: Iterable[str], *, give_back: bool) -> set[str]:
        entry_ids = _entry_ids(ids)
        if give_back:
            self._attempts.given_back(entry_ids)
        args: list[str | int] = [GROUP, self._name, int(give_back), *entry_ids]
        mine = self._in_group(lambda: self._extend(keys=[self._keys.stream], args=args), [])
        return {self._keys.format_entry_id(entry_id.decode()) for entry_id in mine}

    def release(self, ids: Sequence[str]) -> int:
        entry_ids = _entry_ids(ids)
        self._attempts.given_back(entry_ids)
        args: list[str | int] = [GROUP, self._name, self._lease_ms, *entry_ids]
        return int(self._in_group(lambda: self._release(keys=[self._keys.stream], args=args), 0))

    def dead_letter(self, delivery: Delivery, fields: dict[str, str]) -> bool:
        args: list[str | int] = [GROUP, self._name, parse_entry_id(delivery.id)[1], delivery.wire_bytes]
        for name, value in fields.items():
            args += [name, value]
        keys = [self._keys.stream, self._keys.volume, self._keys.dlq, self._keys.priority]
        dead = bool(self._in_group(lambda: self._dead_letter(keys=keys, args=args), None))
        self._attempts.forget(args[2:3])
        return dead

    def leave_to(self, consumer: str, delivery: Delivery) -> None:
        args = [GROUP, self._name, consumer, parse_entry_id(delivery.id)[1]]
        self._in_group(lambda: self._leave_to(keys=[self._keys.stream], args=args), None)
        self._attempts.forget(args[3:])

    def recover_orphans(self) -> int:
        found, start = 0, "-"
        while start:
            args: list[str | int] = [GROUP, self._name, self._lease_ms, start]
            here, *following = self._in_group(partial(self._recover_orphans, keys=[self._keys.stream], args=args), [0])
            found, start = found + int(here), following[0].decode() if following else ""
        return found

    def depth(self, min_priority: int) -> int:
        def count() -> int:
            pipe = self._client.pipeline(transaction=False)
            pipe.xlen(self._keys.stream)
            pipe.zcount(self._keys.priority, "-inf", -min_priority)
            pipe.zcount(self._keys.priority, f"({-min_priority}", "+inf")
            depth, above, below = pipe.execute()
            return int(above if min_priority > NORMAL_PRIORITY else depth - below)

        return self._link.call(count)

    def unregister(self) -> None:
        self._in_group(self._delete_consumer, None)

    def _delete_consumer(self) -> None:
        # DELCONSUMER drops what is pending, silently: two steps are safe because only this process reads by the name.
        if not self._client.xpending_range(self._keys.stream, GROUP, "-", "+", 1, consumername=self._name):
            self._client.xgroup_delconsumer(self._keys.stream, GROUP, self._name)

    def _check_clock(self) -> None:
        seconds, microseconds = self._link.call(lambda: self._link.node_for(self._keys).time())
        if self._clock.went_back(seconds + microseconds / 1e6):
            self._in_group(lambda: self._restart_idle(keys=[self._keys.stream], args=[GROUP]), None)

    def _create_group(self) -> bool:
        return create_group(self._client, self._keys.stream)

    def _replace_group(self) -> None:
        """Create what is missing; where it was there before, its mail is lost, and the producers are told."""
        created = self._create_group()
        # A producer creates every group before it remembers how far the ledger had come.
        if self._had_group or (created and self._client.exists(self._link.keys.ledger)):
            self._count_loss(keys=[self._link.keys.queue_losses])
        self._had_group = True

    def _in_group(
        self, operation: Callable[[], Any], default: Any, on_missing: Callable[[], None] = lambda: None
    ) -> Any:
        """Return the result of `operation`, or `default` when the group was deleted with all its deliveries."""

        def attempt() -> Any:
            try:
                return operation()
            except ResponseError as error:
                if not is_group_missing(error):
                    raise
                on_missing()
                return default

        return self._link.call(attempt)

    def _with_group(self, read: Callable[[], Any]) -> Any:
        """Return the entries that `read` took; none when the group had to be created again first."""
        found = self._in_group(read, None, on_missing=self._replace_group) or []
        self._had_group = True
        return found


def _entry_ids(ids: Iterable[str]) -> list[str]:
    return [parse_entry_id(formatted_id)[1] for formatted_id in ids]


def _flat(fields: dict[bytes, bytes]) -> list[bytes]:
    """Return names and values in turn, as scripts do."""
    return [part for item in fields.items() for part in item]


class _StreamWaiter:
    """Waits until one of several partitions has a new entry; reads none itself. For one thread.

    A read blocks in one server, and in a Cluster on one slot. So there is one read for each server, which ends at the
    first entry after the group's last delivered one. Reads that still wait when another one ends go on in their
    threads; they end by themselves, and their answer is old then.
    """

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        clustered = isinstance(link.client, LazyCluster)
        self._servers = [(keys,) for keys in link.partitions] if clustered else [link.partitions]
        self._reads: dict[int, Future[bool]] = {}
        self._threads = BackgroundThread("wait", parallel=len(self._servers)) if clustered else None

    def wait_any(self) -> None:
        """Return when there may be a new entry, or after a second; raises like `RedisLink.call`."""
        if self._threads is None:
            self._wait(self._servers[0])
            return
        for number, partitions in enumerate(self._servers):
            if number not in self._reads:
                self._reads[number] = self._threads.submit(partial(self._wait, partitions))
        done, _ = wait(self._reads.values(), return_when=FIRST_COMPLETED)
        ended = [number for number, future in self._reads.items() if future in done]
        for future in [self._reads.pop(number) for number in ended]:
            future.result()

    def _wait(self, partitions: Sequence[Keys]) -> bool:
        return self._link.call(lambda: self._read(partitions))

    def _read(self, partitions: Sequence[Keys]) -> bool:
        try:
            streams = {keys.stream: self._last_delivered_id(keys) for keys in partitions}
        except ResponseError as error:
            if is_group_missing(error) or "no such key" in str(error):
                return False  # the next read creates it
            raise
        return bool(self._link.client.xread(cast("Any", streams), count=1, block=int(BLOCK_SECONDS * 1000)))

    def _last_delivered_id(self, keys: Keys) -> str:
        groups: list[dict[str, Any]] = self._link.client.xinfo_groups(keys.stream)
        return next((text(group["last-delivered-id"]) for group in groups if text(group["name"]) == GROUP), "0")


def create_group(client: redis.Redis, stream: str) -> bool:
    """Create a stream and its group of workers; return whether the group was missing."""
    try:
        client.xgroup_create(stream, GROUP, id="0", mkstream=True)
    except ResponseError as error:
        if not str(error).startswith("BUSYGROUP"):
            raise
        return False
    return True
