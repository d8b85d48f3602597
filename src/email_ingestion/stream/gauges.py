"""Depths, ages and memory of Redis, over all partitions, and the presence records of our processes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
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


def read_gauges(link: RedisLink) -> Gauges:
    """Read the gauges; raises like `RedisLink.call`."""
    return link.call(lambda: _read(link))


def _read(link: RedisLink) -> Gauges:
    pipe = link.client.pipeline(transaction=False)
    for keys in link.partitions:
        pipe.xlen(keys.stream)
        pipe.get(keys.volume)
        pipe.xrange(keys.stream, count=1)
        pipe.xlen(keys.dlq)
        pipe.xrange(keys.dlq, count=1)
        pipe.get(keys.replayed)
    values = pipe.execute()
    depths, volumes, first_entries, dlq_depths, first_dead, replayed = (values[column::6] for column in range(6))
    pending, deliveries, oldest_pending = zip(*(_pending(link.client, keys) for keys in link.partitions), strict=True)
    used, maximum, evicted = _memory(link)
    return Gauges(
        depth=sum(depths),
        pending=sum(pending),
        volume=sum(max(0, int(volume or 0)) for volume in volumes),
        oldest=_earliest(entries[0][0] for entries in first_entries if entries),
        oldest_pending=_earliest(entry_id for entry_id in oldest_pending if entry_id),
        max_deliveries=max(deliveries),
        dlq_depth=sum(dlq_depths),
        dlq_oldest=_earliest(entries[0][0] for entries in first_dead if entries),
        dlq_replayed=sum(int(count or 0) for count in replayed),
        memory_used=used,
        memory_max=maximum,
        evicted=evicted,
        processes=_processes(link),
    )


def _earliest(entry_ids: Iterable[bytes]) -> float | None:
    return min(map(entry_time, entry_ids), default=None)


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
    nearest = max(used, key=lambda memory: (memory[0] / memory[1] if memory[1] else 0.0, memory[0]))
    return *nearest, evicted


def _pending(client: redis.Redis, keys: Keys) -> tuple[int, int, bytes | None]:
    """Return the number, the highest delivery count among the oldest thousand, and the oldest entry id."""
    try:
        entries = cast("list[dict[str, Any]]", client.xpending_range(keys.stream, GROUP, "-", "+", 1000))
        summary = client.xpending(keys.stream, GROUP)
    except ResponseError as error:
        if is_group_missing(error):
            return 0, 0, None
        raise
    deliveries = max((int(entry["times_delivered"]) for entry in entries), default=0)
    return int(summary["pending"]), deliveries, entries[0]["message_id"] if entries else None


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
