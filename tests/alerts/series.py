"""Time series for `promtool test rules`: what a healthy system shows each minute, and what a fault makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

HOUR = 3600.0
Value = Callable[[int, int, float], float | None]
"""From the minute, the minute the fault began at, and the value before."""


def level(value: float) -> Value:
    return lambda minute, since, before: value


def now(ago: float = 0.0) -> Value:
    """A timestamp that follows the clock."""
    return lambda minute, since, before: minute * 60 - ago


def frozen(minute: int, since: int, before: float) -> float:
    return before


def gone(minute: int, since: int, before: float) -> None:
    return None


def grows(each_minute: float) -> Value:
    return lambda minute, since, before: before + each_minute


def now_and_then(frozen_for: int, of: int) -> Value:
    """A timestamp that stands still for some minutes of so many."""
    return lambda minute, since, before: before if (minute - since) % of < frozen_for else minute * 60.0 - 30


PRODUCER = 'instance="127.0.0.1:9090", component="producer", job="email_ingestion"'
WORKER = 'instance="127.0.0.1:9091", component="worker", job="email_ingestion"'


def _of(name: str, labels: str, *more: str) -> str:
    return f"{name}{{{', '.join((labels, *more))}}}"


def producer(name: str, *labels: str) -> str:
    return _of(f"email_ingestion_{name}", PRODUCER, *labels)


def worker(name: str, *labels: str) -> str:
    return _of(f"email_ingestion_{name}", WORKER, *labels)


def both(name: str, value: Value, *labels: str) -> dict[str, Value]:
    return {producer(name, *labels): value, worker(name, *labels): value}


def up(component: str) -> str:
    return _of("up", PRODUCER if component == "producer" else WORKER)


def started(component: str) -> str:
    return _of("process_start_time_seconds", PRODUCER if component == "producer" else WORKER)


def latency(bound: str) -> str:
    return worker("processing_latency_seconds_bucket", f'le="{bound}"')


MAIL_AGE = producer("delivered_until_timestamp_seconds", 'account="default"')
LAST_SYNC = producer("imap_last_success_timestamp_seconds", 'account="default"')
THROTTLED = producer("imap_throttled_timestamp_seconds", 'account="default"')
CANARY = producer("canary_last_success_timestamp_seconds")
MISSING_THERE = worker("consumer_missing", 'sink="files"')
PROVED = worker("consumer_last_proof_timestamp_seconds", 'sink="files"')
OLDEST_OWED = worker("sink_oldest_timestamp_seconds", 'sink="webhook"')
CHANGE_UNTOLD = worker("sink_changes_oldest_timestamp_seconds", 'sink="webhook"')
CHANGES_REFUSED = worker("sink_changes_refused", 'sink="webhook"')
BACKUP = producer("backup_last_success_timestamp_seconds")
CERTIFICATE = producer("certificate_expiry_timestamp_seconds", 'dependency="imap"')
CONSENT = producer("oauth2_consent_expiry_timestamp_seconds", 'account="default"')

NEW_ERRORS = producer("loop_errors_total", 'loop="watch:default"', 'error_type="KeyError"')
OLD_ERRORS = worker("loop_errors_total", 'loop="consume"', 'error_type="ValueError"')

READS = both("mail_reads_total", grows(0.1), 'via="cli"', 'action="export"')
ARRIVED = worker("mail_arrived_last_hour", 'account="default"')

HEALTHY: Mapping[str, Value] = {
    **READS,
    ARRIVED: level(60),
    worker("mail_expected_last_hour", 'account="default"'): level(60),
    worker("defective_emails_total"): grows(3),
    **{up(component): level(1) for component in ("producer", "worker")},
    **{started(component): level(-200_000) for component in ("producer", "worker")},
    **both("active_workers", level(1)),
    **both("missing_processes", level(0), 'kind="producer"'),
    **both("missing_processes", level(0), 'kind="worker"'),
    **both("loop_last_iteration_timestamp_seconds", now(2), 'loop="collect"'),
    NEW_ERRORS: gone,
    OLD_ERRORS: grows(0),
    **both("dependency_up", level(1), 'dependency="redis"'),
    worker("dependency_up", 'dependency="database"'): level(1),
    **both("circuit_breaker_state", level(0), 'name="redis"'),
    producer("circuit_breaker_state", 'name="imap"'): level(0),
    worker("circuit_breaker_state", 'name="database"'): level(0),
    producer("circuit_breaker_transitions_total", 'name="imap"', 'to="open"'): grows(0),
    producer("circuit_breaker_transitions_total", 'name="imap"', 'to="closed"'): grows(0),
    **both("circuit_breaker_transitions_total", grows(0), 'name="redis"', 'to="closed"'),
    **both("paused", level(0)),
    **both("redis_memory_used_bytes", level(1e6)),
    **both("redis_memory_max_bytes", level(1e7)),
    **both("redis_evicted_keys_total", grows(0)),
    **both("clock_offset_seconds", level(-0.3)),
    **both("stream_depth", level(3)),
    worker("stream_oldest_pending_timestamp_seconds"): now(2),
    OLDEST_OWED: now(2),
    worker("degradation_level"): level(0),
    worker("dlq_messages_total", 'reason="permanent"'): grows(0),
    worker("dlq_messages_total", 'reason="operator"'): grows(0),
    worker("dlq_oldest_timestamp_seconds"): now(HOUR),
    MAIL_AGE: now(30),
    LAST_SYNC: now(30),
    producer("imap_up", 'account="default"'): level(1),
    THROTTLED: gone,
    producer("imap_locked_out_until_timestamp_seconds", 'account="default"'): level(0),
    producer("imap_bytes_budget_remaining", 'account="default"'): level(1e9),
    producer("imap_quarantined_messages", 'account="default"'): level(0),
    producer("oauth2_reauth_required", 'account="default"'): level(0),
    producer("oauth2_token_state", 'account="default"', 'state="client refused"'): level(0),
    producer("oauth2_token_state", 'account="default"', 'state="refresh failing"'): level(0),
    CONSENT: now(-30 * 24 * HOUR),
    producer("reconcile_missing"): level(0),
    producer("contents_lost"): level(0),
    producer("erasures_unfinished"): level(0),
    MISSING_THERE: level(0),
    CHANGE_UNTOLD: now(2),
    CHANGES_REFUSED: level(0),
    PROVED: now(1800),
    worker("emails_processed_total"): grows(30),
    worker("emails_failed_total", 'error_type="SinkUnavailable"'): grows(0),
    worker("duplicates_total"): grows(0),
    latency("1.0"): grows(30),
    latency("10.0"): grows(30),
    latency("+Inf"): grows(30),
    **both("disk_free_bytes", level(5e9), 'folder="data"'),
    **both("disk_size_bytes", level(1e10), 'folder="data"'),
    _of("process_resident_memory_bytes", WORKER): level(1e8),
    _of("email_ingestion_memory_used_bytes", WORKER): level(1e8),
    _of("email_ingestion_memory_limit_bytes", WORKER): level(1e9),
    **both("dependency_response_seconds", level(0.002), 'dependency="redis"'),
    producer("dependency_response_seconds", 'dependency="imap"'): level(0.8),
    CERTIFICATE: now(-60 * 24 * HOUR),
    BACKUP: now(HOUR),
    CANARY: now(30),
}
MEMORY = _of("process_resident_memory_bytes", WORKER)
MEMORY_USED = _of("email_ingestion_memory_used_bytes", WORKER)


@dataclass(frozen=True)
class Fault:
    """What goes wrong, for how many minutes, which alerts have fired at its end, and by when they are quiet again."""

    name: str
    changes: Mapping[str, Value]
    lasts: int
    fires: str  # alert and priority, alternating
    clears: int = 12

    def expected(self) -> dict[str, str]:
        words = self.fires.split()
        return {f"EmailIngestion{name}": priority for name, priority in zip(words[::2], words[1::2], strict=True)}


BEFORE = 11  # minutes of health: as much as the alerts that do not wait look back


def series(fault: Fault) -> Iterator[dict[str, str]]:
    """As promtool reads them; the fault begins after `BEFORE`."""
    assert set(fault.changes) <= set(HEALTHY), set(fault.changes) - set(HEALTHY)
    end = BEFORE + fault.lasts
    for name, healthy in HEALTHY.items():
        last, shown = 0.0, []
        for minute in range(end + fault.clears + 1):
            faulty = BEFORE < minute <= end
            value = (fault.changes.get(name, healthy) if faulty else healthy)(minute, BEFORE, last)
            shown.append("stale" if value is None else f"{value:.10g}")
            last = last if value is None else value
        yield {"series": name, "values": " ".join(shown)}
