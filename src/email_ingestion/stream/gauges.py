"""Depths, ages and memory of Redis, over all partitions, and the presence records of our processes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import redis
from redis.exceptions import ResponseError

from email_ingestion.stream.keys import GROUP, Keys, entry_time
from email_ingestion.stream.redis_link import RedisLink, is_group_missing

PRESENCE_SECONDS = 15


@dataclass(frozen=True, slots=True)
class Gauges:
    """One reading; times are Unix seconds, None where there is no entry."""

    depth: int
    pending: int
    volume: int  # bytes
    oldest: float | None
    oldest_pending: float | None
    max_deliveries: int
    dlq_depth: int
    dlq_oldest: float | None
    dlq_replayed: int  # dead letters ever replayed
    memory_used: int  # bytes, of the server nearest to its limit
    memory_max: int  # bytes, 0 = unlimited
    evicted: int  # keys of all servers, since each started
    processes: tuple[dict[str, Any], ...]  # presence records


@dataclass(frozen=True, slots=True)
class _Partition:
    """The values of one partition."""

    depth: int
    volume: int
    oldest: float | None
    dead: int
    dead_oldest: float | None
    replayed: int
    pending: int
    deliveries: int
    oldest_pending: float | None


def read_gauges(link: RedisLink) -> Gauges:
    """Read the gauges; raises like `RedisLink.call`."""
    return link.call(lambda: _read(link))


def _read(link: RedisLink) -> Gauges:
    parts = _partitions(link)
    used, maximum, evicted = _memory(link)
    return Gauges(
        depth=sum(part.depth for part in parts),
        pending=sum(part.pending for part in parts),
        volume=sum(part.volume for part in parts),
        oldest=_earliest(part.oldest for part in parts),
        oldest_pending=_earliest(part.oldest_pending for part in parts),
        max_deliveries=max(part.deliveries for part in parts),
        dlq_depth=sum(part.dead for part in parts),
        dlq_oldest=_earliest(part.dead_oldest for part in parts),
        dlq_replayed=sum(part.replayed for part in parts),
        memory_used=used,
        memory_max=maximum,
        evicted=evicted,
        processes=_processes(link),
    )


def _partitions(link: RedisLink) -> list[_Partition]:
    pipe = link.client.pipeline(transaction=False)
    for keys in link.partitions:
        pipe.xlen(keys.stream)
        pipe.get(keys.volume)
        pipe.xrange(keys.stream, count=1)
        pipe.xlen(keys.dlq)
        pipe.xrange(keys.dlq, count=1)
        pipe.get(keys.replayed)
    answers = iter(pipe.execute())
    found = []
    for keys in link.partitions:
        depth, volume, oldest, dead, dead_oldest, replayed = islice(answers, 6)
        pending, deliveries, oldest_pending = _pending(link.client, keys)
        found.append(
            _Partition(
                depth,
                max(0, int(volume or 0)),
                entry_time(oldest[0][0]) if oldest else None,
                dead,
                entry_time(dead_oldest[0][0]) if dead_oldest else None,
                int(replayed or 0),
                pending,
                deliveries,
                oldest_pending,
            )
        )
    return found


def _earliest(times: Iterable[float | None]) -> float | None:
    return min((each for each in times if each is not None), default=None)


def _memory(link: RedisLink) -> tuple[int, int, int]:
    """Return used and maximum bytes of the server nearest to its limit, and the evicted keys of all servers."""
    used, evicted = [], 0
    for server in link.masters():
        pipe = server.pipeline(transaction=False)
        pipe.info("memory")
        pipe.info("stats")
        memory, stats = pipe.execute()
        used.append((memory["used_memory"], memory["maxmemory"]))
        evicted += stats["evicted_keys"]
    return *max(used, key=lambda each: (each[0] / each[1] if each[1] else 0.0, each[0])), evicted


def _pending(client: redis.Redis, keys: Keys) -> tuple[int, int, float | None]:
    """Return the number, the highest delivery count among the oldest thousand, and when the oldest was appended."""
    try:
        entries = cast("list[dict[str, Any]]", client.xpending_range(keys.stream, GROUP, "-", "+", 1000))
        summary = client.xpending(keys.stream, GROUP)
    except ResponseError as error:
        if is_group_missing(error):
            return 0, 0, None
        raise
    deliveries = max((int(entry["times_delivered"]) for entry in entries), default=0)
    return int(summary["pending"]), deliveries, entry_time(entries[0]["message_id"]) if entries else None


def _processes(link: RedisLink) -> tuple[dict[str, Any], ...]:
    names = list(link.node_for(link.keys).scan_iter(match=link.keys.alive("*"), count=1000))
    values = cast("list[bytes | None]", link.client.mget(names)) if names else []
    return tuple(found for value in values if value and (found := _presence(value)))


def _presence(value: bytes) -> dict[str, Any] | None:
    """Return a presence record, None where it is none; fields that another release does not write are None."""
    with suppress(ValueError):
        found = json.loads(value)
        if isinstance(found, dict) and {"component", "instance"} <= found.keys():
            return dict.fromkeys(("stem", "pid", "ready", "ops_url", "seen", "paused", "level", "min_priority")) | found
    return None


def read_presences(link: RedisLink) -> tuple[dict[str, Any], ...]:
    """Return the presence records of all live processes; raises like `RedisLink.call`."""
    return link.call(lambda: _processes(link))


def announce_presence(link: RedisLink, presence: dict[str, Any]) -> None:
    """Write this process's presence, which names component and instance; it expires when it is not repeated.

    Past the breaker: it also proves that Redis takes writes, else it raises RedisConnectionError.
    """
    link.call_unguarded(
        lambda: link.client.set(_presence_key(link.keys, presence), json.dumps(presence), ex=PRESENCE_SECONDS)
    )


def withdraw_presence(link: RedisLink, presence: dict[str, Any]) -> None:
    """Delete this process's presence at its end."""
    link.call(lambda: link.client.delete(_presence_key(link.keys, presence)))


def _presence_key(keys: Keys, presence: dict[str, Any]) -> str:
    return keys.alive(presence["instance"])
