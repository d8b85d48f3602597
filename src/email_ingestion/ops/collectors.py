"""Collectors read at the moment of a scrape: Redis and breakers as cached, freshness, disks; they contact no server.

A value that could not be read is absent, never 0: an alert must not take an outage for an empty queue.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from email_ingestion.errors import OperationFailed
from email_ingestion.ops.metric_factory import PREFIX
from email_ingestion.ops.start_journal import recent_crashes
from email_ingestion.ops.status_records import Breakers, RedisState, RedisView
from email_ingestion.overrides import LEVELS, OperatorOverrides

SINK_OLDEST = (
    "sink_oldest_timestamp_seconds",
    "Unix time since which the oldest message waits that a further sink still has to get; absent for none.",
)
STATE_VALUES = {"CLOSED": 0, "OPEN": 1, "HALF_OPEN": 2}

_REDIS: tuple[tuple[str, str, Callable[[RedisState], float | None]], ...] = (
    ("stream_depth", "Entries in the stream: the backlog.", lambda redis: redis.stream.depth),
    ("stream_pending", "Entries a worker has and has not completed.", lambda redis: redis.stream.pending),
    ("stream_waiting", "Entries no worker has taken yet.", lambda redis: redis.stream.waiting),
    (
        "stream_oldest_timestamp_seconds",
        "Unix time at which the oldest entry was appended; absent when there is none.",
        lambda redis: redis.stream.oldest_timestamp,
    ),
    (
        "stream_oldest_pending_timestamp_seconds",
        "Unix time at which the oldest entry that a worker has was appended; absent when there is none.",
        lambda redis: redis.stream.oldest_pending_timestamp,
    ),
    ("stream_max_deliveries", "Highest delivery count of a pending entry.", lambda redis: redis.stream.max_deliveries),
    ("dlq_depth", "Entries in the dead letter queue.", lambda redis: redis.dlq.depth),
    (
        "dlq_oldest_timestamp_seconds",
        "Unix time at which the oldest dead letter was put aside; absent when there is none.",
        lambda redis: redis.dlq.oldest_timestamp,
    ),
    ("active_workers", "Workers whose heartbeat in Redis is fresh.", lambda redis: redis.active_workers),
    (
        "idle_workers",
        "Live workers that can deliver nothing, as they say themselves.",
        lambda redis: redis.idle_workers,
    ),
    (
        "clock_offset_seconds",
        "Seconds by which this machine's clock is before that of Redis; negative when it is behind.",
        lambda redis: redis.clock_offset,
    ),
    ("redis_memory_used_bytes", "Memory Redis uses.", lambda redis: redis.memory_used_bytes),
    ("redis_memory_max_bytes", "Configured maxmemory of Redis, 0 = unlimited.", lambda redis: redis.memory_max_bytes),
)

_COUNTED_BY_REDIS: tuple[tuple[str, str, Callable[[RedisState], float | None]], ...] = (
    ("dlq_replayed", "Dead letters put back on the stream, by whatever process.", lambda redis: redis.dlq.replayed),
    ("redis_evicted_keys", "Keys Redis threw away to make room, since it started.", lambda redis: redis.evicted_keys),
)


class RedisGauges(Collector):
    """The latest reading of Redis."""

    def __init__(self, read: RedisView) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; the registry calls it at a scrape."""
        redis = self._read()
        documentation = "Whether the stream and Redis gauges are read (1) or Redis does not answer (0)."
        yield GaugeMetricFamily(f"{PREFIX}_collect_success", documentation, int(redis is not None))
        if redis is None:
            return
        for name, documentation, value_of in _REDIS:
            value = value_of(redis)
            if value is not None:
                yield GaugeMetricFamily(f"{PREFIX}_{name}", documentation, value)
        documentation = "Processes that should run and do not: they died, or mail waits and no worker runs."
        missing = GaugeMetricFamily(f"{PREFIX}_missing_processes", documentation, labels=["kind"])
        for component, count in redis.missing_processes.items():
            missing.add_metric([component], count)
        yield missing
        for name, documentation, value_of in _COUNTED_BY_REDIS:
            value = value_of(redis)
            if value is not None:
                yield CounterMetricFamily(f"{PREFIX}_{name}", documentation, value)


class SinkAges(Collector):
    """What the workers say of the sinks beside the database, for the built-in alerts of a producer."""

    def __init__(self, read: RedisView) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; the registry calls it at a scrape."""
        redis = self._read()
        family = GaugeMetricFamily(f"{PREFIX}_{SINK_OLDEST[0]}", SINK_OLDEST[1], labels=["sink"])
        for sink, oldest in (redis.sinks_oldest if redis else {}).items():
            family.add_metric([sink], oldest)
        yield family


class BreakerGauges(Collector):
    """The state of every breaker as it is now, so that `/metrics` and `/status` never differ."""

    def __init__(self, breakers: Breakers) -> None:
        self._breakers = breakers

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; the registry calls it at a scrape."""
        documentation = "State of the circuit breaker: 0 closed, 1 open, 2 half-open."
        family = GaugeMetricFamily(f"{PREFIX}_circuit_breaker_state", documentation, labels=["name"])
        for breaker in self._breakers():
            family.add_metric([breaker.name], STATE_VALUES[breaker.state])
        yield family


class CrashGauges(Collector):
    """How often the processes of this machine ended by themselves lately, by the journal of starts."""

    def __init__(self, log_dir: Path, clock: Callable[[], float]) -> None:
        self._log_dir = log_dir
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        """Yield the gauge; the registry calls it at a scrape."""
        documentation = "Crashes and kills of a process here within 15 minutes, after which it was started again."
        gauge = GaugeMetricFamily(f"{PREFIX}_process_recent_crashes", documentation, labels=["process"])
        try:
            crashes = recent_crashes(self._log_dir, self._clock())
        except OperationFailed:
            return  # nobody can tell
        for process, count in crashes.items():
            gauge.add_metric([process], count)
        yield gauge


class FolderGauges(Collector):
    """How full the disks under our folders are; a folder that does not exist yet is shown by its parent's disk."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = folders

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; the registry calls it at a scrape."""
        free = GaugeMetricFamily(f"{PREFIX}_disk_free_bytes", "Bytes free for us under a folder.", labels=["folder"])
        size = GaugeMetricFamily(f"{PREFIX}_disk_size_bytes", "Size of the disk under a folder.", labels=["folder"])
        for name, folder in self._folders.items():
            with suppress(OSError):
                usage = shutil.disk_usage(folder if folder.exists() else folder.absolute().parent)
                free.add_metric([name], usage.free)
                size.add_metric([name], usage.used + usage.free)  # without what is kept for root
        yield free
        yield size


class FreshnessGauge(Collector):
    """Up to when the mail of each account is delivered; `redis` is the latest reading.

    The oldest of three: when the server last listed the mailbox, what it listed that is not in the stream, and the
    oldest entry of the stream. So it also grows old when a watcher sees nothing, for whatever reason.
    """

    def __init__(self, read: RedisView) -> None:
        self._read = read
        self._listed: dict[str, float] = {}
        self._waiting: dict[str, float] = {}

    def listed(self, account: str, at: float) -> None:
        """Record that everything on the server at the time `at` is in the stream."""
        self._waiting.pop(account, None)
        self._listed[account] = at

    def forget(self, account: str) -> None:
        """Drop an account that another process reads now."""
        self._waiting.pop(account, None)
        self._listed.pop(account, None)

    def waiting(self, account: str, since: float) -> None:
        """Record that mail that arrived at `since` is on the server and not in the stream."""
        self._waiting[account] = since

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; the registry calls it at a scrape."""
        redis = self._read()
        if redis is None:
            return
        documentation = "Everything that reached the mailbox before this Unix time is delivered."
        family = GaugeMetricFamily(f"{PREFIX}_delivered_until_timestamp_seconds", documentation, labels=["account"])
        for account, listed in dict(self._listed).items():
            since = (listed, self._waiting.get(account), redis.stream.oldest_timestamp)
            family.add_metric([account], min(moment for moment in since if moment is not None))
        yield family


class OverrideGauges(Collector):
    """The overrides of operators that are in force."""

    def __init__(self, overrides: OperatorOverrides) -> None:
        self._overrides = overrides

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; the registry calls it at a scrape."""
        documentation = "Whether operators have paused the process (1) or it takes work (0)."
        yield GaugeMetricFamily(f"{PREFIX}_paused", documentation, int(self._overrides.active_pause() is not None))
        documentation = "Level of service operators asked for: 0 NORMAL, 1 DEGRADED, 2 MINIMAL, 3 MAINTENANCE."
        yield GaugeMetricFamily(f"{PREFIX}_degradation_level", documentation, LEVELS.index(self._overrides.level))
        documentation = "Priority below which mail waits, 0 to 10; only workers heed it."
        yield GaugeMetricFamily(f"{PREFIX}_min_priority", documentation, self._overrides.min_priority)
        documentation = "1 for a sink that an operator has paused; absent for any other."
        paused = GaugeMetricFamily(f"{PREFIX}_sink_paused", documentation, labels=["sink"])
        for name in self._overrides.paused_sinks():
            paused.add_metric([name], 1)
        yield paused
