"""The metrics of one process: the common ones and those of its component; it measures nothing itself.

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
from email_ingestion.errors import is_unforeseen
from email_ingestion.events import Event
from email_ingestion.ops.collectors import BreakerGauges, CrashGauges, FolderGauges, RedisGauges, SinkAges
from email_ingestion.ops.mail_reads import MailReads
from email_ingestion.ops.memory_limit import MemoryGauges
from email_ingestion.ops.metric_factory import BUILTIN_ERRORS, ERROR_TYPES, MetricFactory, label_value
from email_ingestion.ops.process_state import is_redis_failure
from email_ingestion.ops.producer_metrics import ProducerMetrics
from email_ingestion.ops.redaction import error_type
from email_ingestion.ops.status_records import Breakers, Identity, Names, RedisView
from email_ingestion.ops.worker_metrics import WorkerMetrics

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
DEAD_REASONS = ("max_retries", "permanent", "poison", "operator", "malformed")
BREAKER_STATES = ("closed", "open", "half_open")
# Loops whose silence is no stall, and what turns beside the loops.
UNWATCHED_LOOPS = (
    *("accounts", "alerts", "backups", "beat", "blobs", "body", "canary", "certificates", "observe", "output"),
    *("volume", "watchdog"),
)
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
        factory = MetricFactory(self.registry)
        self._names = names
        self._loops, self._breakers = set(names.loops), set(names.breakers)
        self._tripped: set[str] = set()  # dependencies whose breaker has opened by itself
        self._unreachable: set[str] = set()  # accounts whose mail server failed at their last look at it
        self._clock = clock
        self._reactions: dict[type[Event], list[Callable[[Any], None]]] = defaultdict(list)
        self._describe_process(factory, identity)
        self._register(self._declare_common(factory))
        self._register(_component_metrics(factory, identity, names, redis, clock))
        self.registry.register(BreakerGauges(breakers))
        self.registry.register(RedisGauges(redis))
        self.registry.register(FolderGauges(names.folders))
        self.registry.register(MemoryGauges())
        if "logs" in names.folders:
            self.registry.register(MailReads(names.folders["logs"], clock))
        if identity.component == "producer":
            self.registry.register(SinkAges(redis))
            if "logs" in names.folders:
                self.registry.register(CrashGauges(names.folders["logs"], clock))

    def __call__(self, event: Event) -> None:
        """Observe an event."""
        for react in self._reactions.get(type(event), ()):
            react(event)

    def count_log(self, level: str) -> None:
        """Count a log record of `level`."""
        if level in LEVELS:
            self._logs.labels(level).inc()

    def render(self) -> bytes:
        """Render all metrics in the text exposition format, version 0.0.4."""
        return generate_latest(self.registry)

    def _register(self, reactions: Reactions) -> None:
        for kind, reaction in reactions.items():
            self._reactions[kind].append(reaction)

    def _describe_process(self, factory: MetricFactory, identity: Identity) -> None:
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        build = factory.gauge("build_info", "Constant 1, labelled by version and component.", "version", "component")
        build.labels(identity.version, identity.component).set(1)
        self._logs = factory.counter("log_messages_total", "Log records written, by level.", level=LEVELS)

    def _declare_common(self, factory: MetricFactory) -> Reactions:
        self._last_ticks = factory.gauge(
            "loop_last_iteration_timestamp_seconds", "Unix time at which a loop last completed an iteration.", "loop"
        )
        self._up = factory.gauge(
            "dependency_up", "Whether the last probe of the dependency succeeded (1) or failed (0).", "dependency"
        )
        self._response = factory.gauge(
            "dependency_response_seconds",
            "Time the dependency took to answer the last probe; the mail server, to connect and log in.",
            "dependency",
        )
        self._certificates = factory.gauge(
            "certificate_expiry_timestamp_seconds",
            "Unix time at which the TLS certificate of a server ends.",
            "dependency",
        )
        self._transitions = factory.counter(
            "circuit_breaker_transitions_total",
            "State changes of a circuit breaker, by the state entered.",
            name=self._names.breakers,
            to=BREAKER_STATES,
        )
        dead = factory.counter(
            "dlq_messages_total", "Messages moved to the dead letter queue, by reason.", reason=DEAD_REASONS
        )
        orders = factory.counter(
            "admin_actions_total",
            "Orders over POST /admin, by what became of them.",
            action=get_args(events.Action),
            result=get_args(events.Outcome),
        )
        self._loop_errors = factory.open_counter(
            "loop_errors_total", "Failures of a loop that nobody foresaw, by class.", "loop", "error_type"
        )
        set_backup = factory.optional_gauge(
            "backup_last_success_timestamp_seconds", "Unix time of the newest verified backup."
        )
        return {
            events.LoopTick: self._ticked,
            events.LoopFailed: self._loop_failed,
            events.Probed: self._probed,
            events.RedisFailed: self._redis_failed,
            events.NeedsOperator: lambda event: self._forget_server(event.account),
            events.LeaseChanged: lambda event: self._forget_server(event.account) if event.holder else None,
            events.BreakerChanged: self._breaker_changed,
            events.DeadLettered: lambda event: dead.labels(event.reason).inc(),
            events.Administered: lambda event: orders.labels(event.action, event.outcome).inc(),
            events.BackupFound: lambda event: set_backup(event.at),
            events.Connected: self._connected,
            events.AccountUpdated: self._account_updated,
            events.CertificateSeen: lambda event: self._certificates.labels(event.dependency).set(event.ends_at),
        }

    def _ticked(self, event: events.LoopTick) -> None:
        self._last_ticks.labels(label_value(event.loop, self._loops)).set(self._clock())

    def _account_updated(self, event: events.AccountUpdated) -> None:
        """Extend the sets of labels by an account that came; forget the loop of one that is read no more."""
        loop = f"watch:{event.account}"
        if event.change in {"added", "resumed"}:
            self._loops.add(loop)
            self._breakers.add(f"imap:{event.account}")
        elif event.change in {"paused", "removed"}:
            self._loops.discard(loop)
            self._forget_server(event.account)
            with suppress(KeyError):
                self._last_ticks.remove(loop)

    def _loop_failed(self, event: events.LoopFailed) -> None:
        if is_unforeseen(event.error):
            loop = label_value(event.loop, {*self._loops, *UNWATCHED_LOOPS})
            self._loop_errors.labels(loop, label_value(error_type(event.error), {*BUILTIN_ERRORS, *ERROR_TYPES})).inc()

    def _probed(self, event: events.Probed) -> None:
        dependency = label_value(event.dependency, self._names.dependencies)
        if event.account:  # another account's server may answer
            (self._unreachable.discard if event.ok else self._unreachable.add)(event.account)
        self._up.labels(dependency).set(event.ok and not (event.account and self._unreachable))
        if event.ok and event.dependency != "imap":  # whose probe is a whole look at the mailbox
            self._response.labels(dependency).set(event.seconds)

    def _connected(self, event: events.Connected) -> None:
        if event.seconds is not None:
            self._response.labels("imap").set(event.seconds)

    def _redis_failed(self, event: events.RedisFailed) -> None:
        if is_redis_failure(event.error):
            self._up.labels("redis").set(0)

    def _forget_server(self, account: str) -> None:
        """Forget whether the mail server of an account answers: nobody connects for it now."""
        self._unreachable.discard(account)
        if not self._unreachable:  # else another account's is known to fail
            with suppress(KeyError):
                self._up.remove("imap")

    def _breaker_changed(self, event: events.BreakerChanged) -> None:
        self._transitions.labels(label_value(event.name, self._breakers), event.new.lower()).inc()
        if event.name in self._names.dependencies and event.error:  # it is not probed while its breaker is open
            self._tripped.add(event.name)
            self._up.labels(event.name).set(0)
        elif event.new == "CLOSED" and event.name in self._tripped:  # its trials have succeeded
            self._tripped.discard(event.name)
            self._up.labels(event.name).set(not (event.name == "imap" and self._unreachable))


def _component_metrics(
    factory: MetricFactory, identity: Identity, names: Names, redis: RedisView, clock: Callable[[], float]
) -> Reactions:
    if identity.component == "producer":
        return ProducerMetrics(factory, names, redis, clock).reactions()
    return WorkerMetrics(factory, names).reactions()
