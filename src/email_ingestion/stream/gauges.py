"""Depths, ages and memory of Redis, over all partitions, and the presence records of our processes."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import redis
from redis.exceptions import ResponseError

from email_ingestion.stream.keys import GROUP, NEWER_RELEASE, Keys, entry_time
from email_ingestion.stream.redis_link import RedisLink, is_group_missing, text
from email_ingestion.stream.stored_values import record, whole_number

PRESENCE_SECONDS = 15
MAX_SINKS, MAX_NAME = 64, 256  # of a presence, and characters of the name of one
# What a reader finds in every presence record, None where another release does not write it.
PRESENCE_FIELDS: dict[str, type | tuple[type, ...]] = {  # and the kind of each
    **dict.fromkeys(("stem", "host", "ops_url", "ops_proof", "level", "ledger"), str),
    **dict.fromkeys(("pid", "min_priority"), int),
    **dict.fromkeys(("ready", "paused"), bool),
    "seen": (int, float),
    "sink_calls": list,
    "sinks_oldest": dict,
}


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
    memory_used: int | None  # bytes, of the server nearest to its limit; this and the next two: None where not told
    memory_max: int | None  # bytes, 0 = unlimited
    evicted: int | None  # keys of all servers, since each started
    processes: tuple[dict[str, Any], ...]  # presence records
    lost: tuple[dict[str, Any], ...] = ()  # last presence records of processes that ended without stopping orderly
    pending_by_consumer: Mapping[str, int] = field(default_factory=dict)
    newer: int = 0  # pending entries that only a newer release can read
    clock_offset: float = 0.0  # seconds by which this machine's clock is before that of the server that differs most


def read_gauges(link: RedisLink) -> Gauges:
    """Read the gauges; raises like `RedisLink.call`. What Redis holds is shown also where it refuses our work."""
    return (link.call_unguarded if link.refusal else link.call)(lambda: _read(link))


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
    by_consumer: Counter[str] = sum(pending, Counter())
    alive, lost = _processes(link)
    used, maximum, evicted, clock_offset = _servers(link)
    return Gauges(
        depth=sum(depths),
        pending=by_consumer.total(),
        volume=sum(max(0, whole_number(volume) or 0) for volume in volumes),
        oldest=_earliest(entries[0][0] for entries in first_entries if entries),
        oldest_pending=_earliest(entry_id for entry_id in oldest_pending if entry_id),
        max_deliveries=max(deliveries),
        dlq_depth=sum(dlq_depths),
        dlq_oldest=_earliest(entries[0][0] for entries in first_dead if entries),
        dlq_replayed=sum(max(0, whole_number(count) or 0) for count in replayed),
        memory_used=used,
        memory_max=maximum,
        evicted=evicted,
        processes=alive,
        lost=lost,
        pending_by_consumer=by_consumer,
        newer=by_consumer[NEWER_RELEASE],
        clock_offset=clock_offset,
    )


def count_waiting(link: RedisLink) -> int:
    """Count the messages in the stream that no worker has read yet; raises like `RedisLink.call`."""
    return link.call(lambda: sum(_waiting(link.client, keys) for keys in link.partitions))


def _waiting(client: redis.Redis, keys: Keys) -> int:
    depth: int = client.xlen(keys.stream)
    if not depth:
        return 0
    try:
        return max(0, depth - int(client.xpending(keys.stream, GROUP)["pending"]))
    except ResponseError as error:
        if is_group_missing(error):
            return depth
        raise


def _earliest(entry_ids: Iterable[bytes]) -> float | None:
    return min(map(entry_time, entry_ids), default=None)


def _servers(link: RedisLink) -> tuple[int | None, int | None, int | None, float]:
    """Return used and maximum bytes of the server nearest to its limit, evicted keys of all, and the clock's offset.

    A managed server may refuse INFO or leave parts out: what it does not tell is None.
    """
    used: list[tuple[int, int]] = []
    evictions: list[int] = []
    offsets: list[float] = []
    for server in link.masters():
        pipe = server.pipeline(transaction=False)
        pipe.info("memory")
        pipe.info("stats")
        pipe.time()
        asked = time.time()
        memory, stats, now = pipe.execute(raise_on_error=False)
        offsets.append((asked + time.time()) / 2 - _seconds(now))
        if isinstance(memory, dict) and "used_memory" in memory:
            used.append((int(memory["used_memory"]), int(memory.get("maxmemory") or 0)))
        if isinstance(stats, dict) and "evicted_keys" in stats:
            evictions.append(int(stats["evicted_keys"]))
    nearest = max(used, key=lambda memory: (memory[0] / memory[1] if memory[1] else 0.0, memory[0]), default=None)
    offset = max(offsets, key=abs, default=0.0)
    return *(nearest or (None, None)), sum(evictions) if evictions else None, offset


def _seconds(answer: tuple[int, int] | Exception) -> float:
    if isinstance(answer, Exception):
        raise answer
    seconds, microseconds = answer
    return seconds + microseconds / 1e6


def _pending(client: redis.Redis, keys: Keys) -> tuple[Counter[str], int, bytes | None]:
    """Return the number by consumer, the highest delivery count among the oldest thousand, and the oldest entry id."""
    try:
        entries = cast("list[dict[str, Any]]", client.xpending_range(keys.stream, GROUP, "-", "+", 1000))
        summary = client.xpending(keys.stream, GROUP)
    except ResponseError as error:
        if is_group_missing(error):
            return Counter(), 0, None
        raise
    deliveries = max((int(entry["times_delivered"]) for entry in entries), default=0)
    by_consumer = Counter({text(each["name"]): int(each["pending"]) for each in summary["consumers"]})
    return by_consumer, deliveries, entries[0]["message_id"] if entries else None


def _processes(link: RedisLink) -> tuple[tuple[dict[str, Any], ...], tuple[dict[str, Any], ...]]:
    """Return the presence records of live processes, and the last ones of processes that died."""
    names = list(link.node_for(link.keys).scan_iter(match=link.keys.alive("*"), count=1000))
    values = cast("list[bytes | None]", link.client.mget(names)) if names else []
    alive = _presences(values)
    known = {text(name) for name in cast("list[bytes]", link.client.hkeys(link.keys.processes))}
    absent = sorted(known - {each["instance"] for each in alive})
    return alive, _lost(link, absent) if absent else ()


def _lost(link: RedisLink, instances: list[str]) -> tuple[dict[str, Any], ...]:
    """Look again, in the order that no process mistakes for a death while another starts or stops orderly."""
    pipe = link.client.pipeline(transaction=False)
    for instance in instances:
        pipe.exists(link.keys.alive(instance))
        pipe.hget(link.keys.processes, instance)
    values = pipe.execute()
    return _presences([record for alive, record in zip(values[::2], values[1::2], strict=True) if not alive])


def _presences(values: Iterable[bytes | None]) -> tuple[dict[str, Any], ...]:
    return tuple(found for value in values if value and (found := _presence(value)))


def _presence(value: bytes) -> dict[str, Any] | None:
    """Return a presence record, None where it is none; fields that another release does not write are None."""
    found = record(value, {"component": str, "instance": str})
    if found is None:
        return None
    kinds = PRESENCE_FIELDS.items()
    found |= {name: found[name] if isinstance(found.get(name), kind) else None for name, kind in kinds}
    found["sink_calls"] = [each for each in found["sink_calls"] or () if _is_call(each)]
    # The names become labels of metrics.
    oldest = [(sink, at) for sink, at in (found["sinks_oldest"] or {}).items() if _is_name(sink) and _is_number(at)]
    return found | {"sinks_oldest": dict(oldest[:MAX_SINKS])}


def _is_name(value: str) -> bool:
    return 0 < len(value) <= MAX_NAME and value.isprintable()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_call(value: Any) -> bool:
    return (
        isinstance(value, dict) and {"sink", "email_id"} <= value.keys() and isinstance(value.get("since"), int | float)
    )


def read_presences(link: RedisLink) -> tuple[dict[str, Any], ...]:
    """Return the presence records of all live processes; raises like `RedisLink.call`."""
    return link.call(lambda: _processes(link)[0])


def announce_presence(link: RedisLink, presence: dict[str, Any]) -> None:
    """Write this process's presence, which names component and instance; it expires when it is not repeated.

    Past the breaker: it also proves that Redis takes writes, else it raises RedisConnectionError.
    """
    instance, record = presence["instance"], json.dumps(presence)

    def write() -> None:
        link.client.set(link.keys.alive(instance), record, ex=PRESENCE_SECONDS)
        link.client.hset(link.keys.processes, instance, record)

    link.call_unguarded(write)


def withdraw_presence(link: RedisLink, instance: str, *, orderly: bool = True) -> None:
    """Delete a process's presence at its end; after an orderly one nobody misses it."""
    if orderly:
        forget_process(link, instance)
    link.call(lambda: link.client.delete(link.keys.alive(instance)))


def forget_process(link: RedisLink, instance: str) -> None:
    """Let a dead process no longer count as one that should run; one that lives writes its record again."""
    link.call(lambda: link.client.hdel(link.keys.processes, instance))
