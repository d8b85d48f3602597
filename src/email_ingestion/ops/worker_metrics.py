"""The metrics only a worker has, and the events that move them: deliveries, failures, latencies, orphans, sinks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import Gauge

from email_ingestion import events
from email_ingestion.events import Event
from email_ingestion.ops.collectors import SINK_OLDEST
from email_ingestion.ops.metric_factory import ERROR_TYPES, MetricFactory, label_value
from email_ingestion.ops.status_records import Names
from email_ingestion.parsing.defects import Defect
from email_ingestion.records import ServerDefect

DEFECT_KINDS = {defect.value.partition(":")[0] for defect in (*Defect, *ServerDefect)}
MAIL = ("live", "history")
SINK_RESULTS = ("delivered", "duplicate", "failed")
PROCESSING = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 300)
WAITING = (0.01, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600)
END_TO_END = (1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 21600)


class WorkerMetrics:
    """Declared once per process; `reactions` maps a kind of event to its effect."""

    def __init__(self, factory: MetricFactory, names: Names) -> None:
        self._sinks = names.sinks
        self._processed = factory.counter("emails_processed_total", "Messages delivered that no sink had before.")
        self._duplicates = factory.counter("duplicates_total", "Messages completed that the sinks had already.")
        self._failed = factory.counter(
            "emails_failed_total", "Failed attempts at a message, by class of the error.", error_type=ERROR_TYPES
        )
        self._retries = factory.counter("retries_total", "Further attempts scheduled after a failed one.")
        self._orphans = factory.counter(
            "orphan_messages_claimed_total",
            "Entries taken over from a worker that is gone, or an earlier life of this one.",
        )
        self._sink_deliveries = factory.counter(
            "sink_deliveries_total", "Messages handed to a sink, by result.", sink=names.sinks, result=SINK_RESULTS
        )
        self._resends = factory.gauge("sink_resends_waiting_messages", "Messages a sink gets again.", "sink")
        self._backlog = factory.gauge("sink_waiting_messages", "Messages that a further sink still has to get.", "sink")
        self._oldest = factory.gauge(*SINK_OLDEST, "sink")
        self._changes = factory.open_counter(
            "sink_changes_total", "Changes of delivered mail told to a sink, by result.", "sink", "result"
        )
        self._changes_waiting = factory.gauge("sink_changes_waiting", "Changes that a sink was not told yet.", "sink")
        self._changes_refused = factory.gauge("sink_changes_refused", "Changes that a sink refused for good.", "sink")
        self._changes_oldest = factory.gauge(
            "sink_changes_oldest_timestamp_seconds",
            "Unix time of the oldest change that a sink was not told yet; absent for none.",
            "sink",
        )
        self._consumer_missing = factory.gauge(
            "consumer_missing", "Messages that a sink was given and has not, at the last comparison.", "sink"
        )
        self._consumer_proved = factory.gauge(
            "consumer_last_proof_timestamp_seconds", "Unix time at which all of a sink was compared last.", "sink"
        )
        self._synthetic = factory.counter(
            "rehearsed_messages_total",
            "Messages of load tests and canaries that came to their end; nothing of them is kept.",
            result=("delivered", "failed"),
        )
        self._slow = factory.counter(
            "slow_messages_total", "Messages that take long to parse and went on in the slow lane, beside the flow."
        )
        self._set_outdated = factory.optional_gauge(
            "reparse_pending_messages", "Delivered messages whose record an older parser made, for `reparse`."
        )
        self._declare_quality(factory)
        self._declare_latencies(factory)

    def reactions(self) -> dict[type[Event], Callable[[Any], None]]:
        """Return the effect of every kind of event."""
        return {
            events.Delivered: self._delivered,
            events.Deferred: self._deferred,
            events.DeadLettered: self._dead_lettered,
            events.Reclaimed: lambda event: self._orphans.inc(event.count),
            events.SinkDelivered: self._sink_delivered,
            events.SinkBacklog: self._set_backlog,
            events.ChangesTold: lambda event: self._count_changes(event.sink, event.result, event.count),
            events.ChangeRefused: lambda event: self._count_changes(event.sink, "refused", 1),
            events.ChangeBacklog: self._set_change_backlog,
            events.ConsumersProved: self._consumers_proved,
            events.SyntheticHandled: self._count_synthetic,
            events.SlowMessageFound: lambda _event: self._slow.inc(),
            events.DefectsFound: self._defects_found,
            events.VolumeCounted: self._volume_counted,
            events.OutdatedRecordsCounted: lambda event: self._set_outdated(event.count),
        }

    def _declare_quality(self, factory: MetricFactory) -> None:
        self._defective = factory.counter("defective_emails_total", "Messages delivered that have a defect.")
        self._defects = factory.open_counter(
            "email_defects_total", "Messages delivered with a defect, by the kind of the defect.", "kind"
        )
        self._arrived = factory.gauge("mail_arrived_last_hour", "Delivered mail of the last hour.", "account")
        self._expected = factory.gauge(
            "mail_expected_last_hour", "Median of the mail that the same hour of the last four weeks had.", "account"
        )

    def _defects_found(self, event: events.DefectsFound) -> None:
        self._defective.inc(event.messages)
        for kind, count in event.kinds.items():
            self._defects.labels(label_value(kind, DEFECT_KINDS)).inc(count)

    def _volume_counted(self, event: events.VolumeCounted) -> None:
        self._arrived.clear()
        self._expected.clear()
        for account, (arrived, expected) in (event.arrived or {}).items():
            self._arrived.labels(account).set(arrived)
            if expected is not None:
                self._expected.labels(account).set(expected)

    def _declare_latencies(self, factory: MetricFactory) -> None:
        self._processing = factory.histogram(
            "processing_latency_seconds", "Time a worker spent on a message, its share of the batch.", *PROCESSING
        )
        self._queue_wait = factory.histogram(
            "queue_wait_seconds",
            "Time from append to the stream to delivery to this worker, of live mail and of history.",
            *WAITING,
            mail=MAIL,
        )
        self._end_to_end = factory.histogram(
            "end_to_end_latency_seconds",
            "Time from arrival at the server (INTERNALDATE) to completion, of live mail and of history.",
            *END_TO_END,
            mail=MAIL,
        )

    def _delivered(self, event: events.Delivered) -> None:
        (self._duplicates if event.duplicate else self._processed).inc()
        self._processing.observe(event.duration)
        mail = "history" if event.history else "live"
        self._queue_wait.labels(mail).observe(event.queue_wait)
        self._end_to_end.labels(mail).observe(event.end_to_end)

    def _deferred(self, event: events.Deferred) -> None:
        self._retries.inc()
        self._count_failure(event.error)

    def _dead_lettered(self, event: events.DeadLettered) -> None:
        # The last attempt: nothing deferred it, so nothing has counted it yet. A poisoned message has no error.
        if event.error and event.reason != "operator":
            self._count_failure(event.error)

    def _count_failure(self, error: Exception) -> None:
        self._failed.labels(label_value(type(error).__name__, ERROR_TYPES)).inc()

    def _sink_delivered(self, event: events.SinkDelivered) -> None:
        self._sink_deliveries.labels(label_value(event.sink, self._sinks), event.result).inc(event.count)

    def _count_changes(self, sink: str, result: str, count: int) -> None:
        self._changes.labels(label_value(sink, self._sinks), result).inc(count)

    def _count_synthetic(self, event: events.SyntheticHandled) -> None:
        self._synthetic.labels("delivered" if event.delivered else "failed").inc(event.count)

    def _consumers_proved(self, event: events.ConsumersProved) -> None:
        self._consumer_missing.clear()
        self._consumer_proved.clear()
        for sink, (missing, at) in (event.found or {}).items():
            if sink in self._sinks:
                self._consumer_missing.labels(sink).set(missing)
                self._consumer_proved.labels(sink).set(at)

    def _set_backlog(self, event: events.SinkBacklog) -> None:
        sink = label_value(event.sink, self._sinks)
        _set_all(sink, (self._backlog, event.waiting), (self._oldest, event.oldest), (self._resends, event.resends))

    def _set_change_backlog(self, event: events.ChangeBacklog) -> None:
        sink = label_value(event.sink, self._sinks)
        waiting, refused = (self._changes_waiting, event.waiting), (self._changes_refused, event.refused)
        _set_all(sink, waiting, (self._changes_oldest, event.oldest), refused)


def _set_all(sink: str, *values: tuple[Gauge, float | None]) -> None:
    for gauge, value in values:
        if value is None:
            gauge.remove(sink)  # unknown is not 0
        else:
            gauge.labels(sink).set(value)
