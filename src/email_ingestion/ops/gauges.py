"""Gauges read at the moment of a scrape from what is cached: Redis and the breakers; contacts nothing itself.

What could not be read is absent, never 0: an alert must not take an outage for an empty queue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from email_ingestion.ops.declare import PREFIX
from email_ingestion.ops.records import Breakers, RedisState, RedisView

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
    ("stream_max_deliveries", "Highest delivery count of a pending entry.", lambda redis: redis.stream.max_deliveries),
    ("dlq_depth", "Entries in the dead letter queue.", lambda redis: redis.dlq.depth),
    ("active_workers", "Workers whose heartbeat in Redis is fresh.", lambda redis: redis.active_workers),
    ("redis_memory_used_bytes", "Memory Redis uses.", lambda redis: redis.memory_used_bytes),
    ("redis_memory_max_bytes", "Configured maxmemory of Redis, 0 = unlimited.", lambda redis: redis.memory_max_bytes),
)


class RedisGauges(Collector):
    """What the latest reading of Redis says."""

    def __init__(self, read: RedisView) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        redis = self._read()
        what = "Whether the stream and Redis gauges are read (1) or Redis does not answer (0)."
        yield GaugeMetricFamily(f"{PREFIX}_collect_success", what, int(redis is not None))
        if redis is None:
            return
        for name, explained, value_of in _REDIS:
            value = value_of(redis)
            if value is not None:
                yield GaugeMetricFamily(f"{PREFIX}_{name}", explained, value)
        if redis.dlq.replayed is not None:
            explained = "Dead letters put back on the stream, by whatever process."
            yield CounterMetricFamily(f"{PREFIX}_dlq_replayed", explained, redis.dlq.replayed)


class BreakerGauges(Collector):
    """The state of every breaker as it is now, so that `/metrics` and `/status` never differ."""

    def __init__(self, breakers: Breakers) -> None:
        self._breakers = breakers

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        what = "State of the circuit breaker: 0 closed, 1 open, 2 half-open."
        family = GaugeMetricFamily(f"{PREFIX}_circuit_breaker_state", what, labels=["name"])
        for breaker in self._breakers():
            family.add_metric([breaker.name], STATE_VALUES[breaker.state])
        yield family
