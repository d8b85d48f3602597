"""What an operator wants to know of Redis, read in one round trip, and the presence of our processes in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, cast

import redis
from redis.exceptions import ResponseError

from email_ingestion.stream.connection import Link, missing_group
from email_ingestion.stream.delivery import seconds_of
from email_ingestion.stream.keys import GROUP, Keys

PRESENCE_SECONDS = 15


@dataclass(frozen=True, slots=True)
class Gauges:
    """One reading; times are Unix seconds, None where there is nothing to tell the time of."""

    depth: int
    pending: int
    volume: int  # bytes
    oldest: float | None
    oldest_pending: float | None
    max_deliveries: int
    dlq_depth: int
    dlq_oldest: float | None
    dlq_replayed: int  # letters put back, ever
    memory_used: int  # bytes
    memory_max: int  # bytes, 0 = unlimited
    evicted: int  # keys, since Redis started
    processes: tuple[dict[str, Any], ...]  # presence records


def read_gauges(link: Link) -> Gauges:
    """Read them; raises like `Link.run`."""
    return link.run(lambda: _read(link.client, link.keys))


def _read(client: redis.Redis, keys: Keys) -> Gauges:
    pipe = client.pipeline(transaction=False)
    pipe.xlen(keys.stream)
    pipe.get(keys.volume)
    pipe.xrange(keys.stream, count=1)
    pipe.xlen(keys.dlq)
    pipe.xrange(keys.dlq, count=1)
    pipe.get(keys.replayed)
    pipe.info("memory")
    pipe.info("stats")
    depth, volume, oldest, dead, dead_oldest, replayed, memory, stats = pipe.execute()
    pending, deliveries, oldest_pending = _pending(client, keys)
    processes = _processes(client, keys)
    return Gauges(
        depth=depth,
        pending=pending,
        volume=max(0, int(volume or 0)),
        oldest=seconds_of(oldest[0][0]) if oldest else None,
        oldest_pending=oldest_pending,
        max_deliveries=deliveries,
        dlq_depth=dead,
        dlq_oldest=seconds_of(dead_oldest[0][0]) if dead_oldest else None,
        dlq_replayed=int(replayed or 0),
        memory_used=memory["used_memory"],
        memory_max=memory["maxmemory"],
        evicted=stats["evicted_keys"],
        processes=processes,
    )


def _pending(client: redis.Redis, keys: Keys) -> tuple[int, int, float | None]:
    """How many, the highest delivery count among the oldest thousand, and when the oldest was appended."""
    try:
        entries = cast("list[dict[str, Any]]", client.xpending_range(keys.stream, GROUP, "-", "+", 1000))
        summary = client.xpending(keys.stream, GROUP)
    except ResponseError as error:
        if missing_group(error):
            return 0, 0, None
        raise
    deliveries = max((int(entry["times_delivered"]) for entry in entries), default=0)
    return int(summary["pending"]), deliveries, seconds_of(entries[0]["message_id"]) if entries else None


def _processes(client: redis.Redis, keys: Keys) -> tuple[dict[str, Any], ...]:
    names = list(client.scan_iter(match=keys.alive("*"), count=1000))
    values = cast("list[bytes | None]", client.mget(names)) if names else []
    return tuple(json.loads(value) for value in values if value)


def presences(link: Link) -> tuple[dict[str, Any], ...]:
    """The processes that live, as they say themselves; raises like `Link.run`."""
    return link.run(lambda: _processes(link.client, link.keys))


def announce(link: Link, presence: dict[str, Any]) -> None:
    """Say that this process lives; `presence` names component and instance. Expires when it is not repeated.

    It is also the proof that Redis takes writes, and passes by the breaker: raises RedisConnectionError if it does not.
    """
    link.beside(lambda: link.client.set(_name(link.keys, presence), json.dumps(presence), ex=PRESENCE_SECONDS))


def withdraw(link: Link, presence: dict[str, Any]) -> None:
    """Say that this process ends."""
    link.run(lambda: link.client.delete(_name(link.keys, presence)))


def _name(keys: Keys, presence: dict[str, Any]) -> str:
    return keys.alive(presence["instance"])
