"""The metrics of one process: declares those every process has, adds its side's, renders them; measures nothing itself.

Counters and histograms are fed by events; gauges of Redis and of the breakers are read from the cache at a scrape.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, get_args

from prometheus_client import (
    CollectorRegistry,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.gc_collector import GCCollector

from email_ingestion import events
from email_ingestion.events import Event
from email_ingestion.ops.declare import Declare, member
from email_ingestion.ops.facts import speaks_of_redis
from email_ingestion.ops.gauges import BreakerGauges, FolderGauges, RedisGauges
from email_ingestion.ops.producer_metrics import ProducerMetrics
from email_ingestion.ops.records import Breakers, Identity, Names, RedisView
from email_ingestion.ops.worker_metrics import WorkerMetrics

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
DEAD_REASONS = ("max_retries", "permanent", "poison", "operator")
BREAKER_STATES = ("closed", "open", "half_open")
Reactions = dict[type[Event], Callable[[Any], None]]


class Metrics:
    """The registry of one process, and the observer that fills it; `clock` gives Unix seconds."""

    def __init__(
        self,
        identity: Identity,
        names: Names,
        breakers: Breakers,
        redis: RedisView,
        clock: Callable[[], float] = time.time,
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series beside each counter, which nothing reads
        self.registry = CollectorRegistry()
        declare = Declare(self.registry)
        self._names = names
        self._tripped: set[str] = set()  # dependencies whose breaker has opened by itself
        self._clock = clock
        self._reactions: dict[type[Event], list[Callable[[Any], None]]] = defaultdict(list)
        self._describe_process(declare, identity)
        self._react(self._declare_common(declare))
        self._react(_side(declare, identity, names, redis, clock))
        self.registry.register(BreakerGauges(breakers))
        self.registry.register(RedisGauges(redis))
        self.registry.register(FolderGauges(names.folders))

    def __call__(self, event: Event) -> None:
        """Observe an event."""
        for react in self._reactions.get(type(event), ()):
            react(event)

    def count_log(self, level: str) -> None:
        """A log record of `level` was written."""
        if level in LEVELS:
            self._logs.labels(level).inc()

    def render(self) -> bytes:
        """The text exposition format, version 0.0.4."""
        return generate_latest(self.registry)

    def _react(self, reactions: Reactions) -> None:
        for kind, reaction in reactions.items():
            self._reactions[kind].append(reaction)

    def _describe_process(self, declare: Declare, identity: Identity) -> None:
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        build = declare.gauge("build_info", "Constant 1, labelled by version and component.", "version", "component")
        build.labels(identity.version, identity.component).set(1)
        self._logs = declare.counter("log_messages_total", "Log records written, by level.", level=LEVELS)

    def _declare_common(self, declare: Declare) -> Reactions:
        self._turns = declare.gauge(
            "loop_last_iteration_timestamp_seconds", "Unix time at which a loop last completed an iteration.", "loop"
        )
        self._up = declare.gauge(
            "dependency_up", "Whether the last probe of the dependency succeeded (1) or failed (0).", "dependency"
        )
        self._transitions = declare.counter(
            "circuit_breaker_transitions_total",
            "State changes of a circuit breaker, by the state entered.",
            name=self._names.breakers,
            to=BREAKER_STATES,
        )
        dead = declare.counter(
            "dlq_messages_total", "Messages moved to the dead letter queue, by reason.", reason=DEAD_REASONS
        )
        orders = declare.counter(
            "admin_actions_total",
            "Orders over POST /admin, by what became of them.",
            action=get_args(events.Action),
            result=get_args(events.Outcome),
        )
        set_backup = declare.known("backup_last_success_timestamp_seconds", "Unix time of the newest verified backup.")
        return {
            events.LoopTick: self._turned,
            events.Probed: self._probed,
            events.RedisFailed: self._redis_failed,
            events.NeedsOperator: self._unasked,
            events.BreakerChanged: self._breaker_changed,
            events.DeadLettered: lambda event: dead.labels(event.reason).inc(),
            events.Administered: lambda event: orders.labels(event.action, event.outcome).inc(),
            events.BackupFound: lambda event: set_backup(event.at),
        }

    def _turned(self, event: events.LoopTick) -> None:
        self._turns.labels(member(event.loop, self._names.loops)).set(self._clock())

    def _probed(self, event: events.Probed) -> None:
        self._up.labels(member(event.dependency, self._names.dependencies)).set(event.ok)

    def _redis_failed(self, event: events.RedisFailed) -> None:
        if speaks_of_redis(event.error):
            self._up.labels("redis").set(0)

    def _unasked(self, _event: events.NeedsOperator) -> None:
        """An account waits for a person: whether the mail server answers is not known meanwhile."""
        with suppress(KeyError):
            self._up.remove("imap")

    def _breaker_changed(self, event: events.BreakerChanged) -> None:
        self._transitions.labels(member(event.name, self._names.breakers), event.new.lower()).inc()
        if event.name in self._names.dependencies and event.error:  # nobody probes while it is open
            self._tripped.add(event.name)
            self._up.labels(event.name).set(0)
        elif event.new == "CLOSED" and event.name in self._tripped:  # its trials have succeeded
            self._tripped.discard(event.name)
            self._up.labels(event.name).set(1)


def _side(
    declare: Declare, identity: Identity, names: Names, redis: RedisView, clock: Callable[[], float]
) -> Reactions:
    if identity.component == "producer":
        return ProducerMetrics(declare, names, redis, clock).reactions()
    return WorkerMetrics(declare, names).reactions()
