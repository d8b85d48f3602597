"""Writes at most one log line for every event and decides its name and level; nothing is counted.

Messages in flight are logged one by one at DEBUG, and at INFO as one sum per second. A failure that repeats is logged
at once and then at most every 30 s, with the number of the lines left out, which are logged at DEBUG. Every name is in
`docs/log-events.md`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from email_ingestion import events
from email_ingestion.errors import EmailIngestionError
from email_ingestion.events import Event
from email_ingestion.ops.log_aggregation import LogAggregator, RepeatLimiter
from email_ingestion.ops.logs import logger
from email_ingestion.ops.redaction import describe_error, error_type, safe_traceback

REPEAT_SECONDS = 30.0
MAX_RETRIES = "delivery attempts exceeded max_retries"

DEBUG, INFO, WARNING, ERROR, CRITICAL = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class LogRule:
    """How a kind of event is logged; `repeats` marks failures that may come in a flood."""

    name: str
    level: int | Callable[[Any], int]
    repeats: bool = False


LOG_RULES: dict[type[Event], LogRule] = {
    events.Started: LogRule("process_started", INFO),
    events.Stopping: LogRule("process_stopping", INFO),
    events.Stopped: LogRule("process_stopped", INFO),
    events.Stalled: LogRule("loop_stalled", CRITICAL),
    events.LoopFailed: LogRule("loop_failed", ERROR, repeats=True),
    events.LoopRecovered: LogRule("loop_recovered", INFO),
    events.StacksDumped: LogRule("stacks_dumped", WARNING),
    events.Connected: LogRule("imap_connected", INFO),
    events.ConnectionFailed: LogRule("imap_connection_failed", ERROR, repeats=True),
    events.SessionEnded: LogRule("imap_session_ended", INFO),
    events.LockedOut: LogRule("imap_locked_out", lambda event: ERROR if event.error else INFO, repeats=True),
    events.ServerAlert: LogRule("imap_alert", WARNING),
    events.CommandsRefused: LogRule("imap_commands_refused", lambda event: WARNING if event.commands else INFO),
    events.AnswerSlow: LogRule("imap_answer_slow", lambda event: WARNING if event.seconds else INFO, repeats=True),
    events.Slowed: LogRule("imap_slowed", lambda event: WARNING if event.seconds else INFO, repeats=True),
    events.Quarantined: LogRule("message_quarantined", WARNING, repeats=True),
    events.QuarantineCounted: LogRule("quarantine_counted", DEBUG),
    events.WatcherRebuilt: LogRule("imap_watcher_rebuilt", ERROR),
    events.Watching: LogRule("imap_watch_changed", DEBUG),
    events.AccountUpdated: LogRule("account_updated", lambda event: WARNING if event.change == "hidden" else INFO),
    events.LeaseChanged: LogRule("lease_changed", lambda event: WARNING if event.lost else INFO),
    events.Synced: LogRule("imap_synced", DEBUG),
    events.NewMailWaiting: LogRule("imap_mail_waiting", DEBUG),
    events.HistoryWalked: LogRule("history_walked", DEBUG),
    events.LabelsChanged: LogRule("labels_changed", INFO),
    events.Downloaded: LogRule("imap_downloaded", DEBUG),
    events.BytesSpent: LogRule("imap_budget_spent", DEBUG),
    events.MailboxChanged: LogRule("imap_uidvalidity_changed", WARNING),
    events.MailboxContradicted: LogRule("mailbox_contradicted", WARNING),
    events.AlteredOnServer: LogRule("message_altered_on_server", WARNING),
    events.Published: LogRule("batch_published", DEBUG),
    events.Skipped: LogRule("batch_skipped", DEBUG),
    events.TooLarge: LogRule("message_too_large", WARNING),
    events.FetchPaused: LogRule("fetching_held", lambda event: WARNING if event.reason else INFO, repeats=True),
    events.TokenRefreshed: LogRule("token_refreshed", INFO),
    events.TokenRefreshFailed: LogRule(
        "token_refresh_failed", lambda event: ERROR if event.permanent else WARNING, repeats=True
    ),
    events.TokenNotSaved: LogRule("token_not_saved", WARNING, repeats=True),
    events.ConsentEnding: LogRule("consent_ending", WARNING, repeats=True),
    events.NeedsOperator: LogRule("operator_needed", ERROR, repeats=True),
    events.Delivered: LogRule("email_delivered", DEBUG),
    events.SyntheticHandled: LogRule(
        "rehearsal_completed", lambda event: DEBUG if event.delivered else WARNING, repeats=True
    ),
    events.CanarySeen: LogRule("canary_seen", lambda event: DEBUG if event.delivered else ERROR, repeats=True),
    events.SinkBacklog: LogRule("sink_owed", DEBUG),
    events.SlowMessageFound: LogRule("slow_message_found", INFO),
    events.DefectsFound: LogRule("defects_found", DEBUG),
    events.VolumeCounted: LogRule("mail_volume_counted", DEBUG),
    events.OutdatedRecordsCounted: LogRule("outdated_records_counted", DEBUG),
    events.SinkCalls: LogRule("sink_calls", DEBUG),
    events.SinkHung: LogRule("sink_hung", ERROR),
    events.SinkDelivered: LogRule(
        "sink_delivered", lambda event: WARNING if event.result == "failed" else DEBUG, repeats=True
    ),
    events.ChangesTold: LogRule(
        "changes_told", lambda event: DEBUG if event.result == "told" else WARNING, repeats=True
    ),
    events.ChangeBacklog: LogRule("changes_owed", DEBUG),
    events.ChangeRefused: LogRule("change_refused", ERROR, repeats=True),
    events.ChangesMissed: LogRule("changes_missed", ERROR),
    events.Deferred: LogRule("email_deferred", WARNING, repeats=True),
    events.LeftToNewerRelease: LogRule("entry_left_to_newer_release", WARNING, repeats=True),
    events.DeadLettered: LogRule("email_dead_lettered", ERROR),
    events.Reclaimed: LogRule("entries_reclaimed", WARNING),
    events.LedgerWentBack: LogRule("ledger_went_back", WARNING),
    events.QueuedMailVanished: LogRule("queued_mail_vanished", WARNING),
    events.SinkClaimLost: LogRule("sink_claim_lost", WARNING),
    events.DueTimesMended: LogRule("due_times_mended", WARNING),
    events.KeySetAside: LogRule("redis_key_set_aside", ERROR),
    events.OwnershipLost: LogRule("entries_superseded", WARNING, repeats=True),
    events.RedisFailed: LogRule("redis_failed", ERROR, repeats=True),
    events.BreakerChanged: LogRule("breaker_changed", lambda event: ERROR if event.new == "OPEN" else INFO),
    events.BreakerRejected: LogRule("breaker_rejected", WARNING, repeats=True),
    events.Probed: LogRule("dependency_probed", lambda event: DEBUG if event.ok else WARNING, repeats=True),
    events.Reconciled: LogRule("mailbox_reconciled", lambda event: WARNING if event.missing else INFO),
    events.ContentDamaged: LogRule("content_damaged", lambda event: ERROR if event.problem else WARNING),
    events.ContentsVerified: LogRule("contents_verified", lambda event: ERROR if event.lost else INFO),
    events.ConsumersProved: LogRule("consumers_proved", DEBUG),
    events.ConsumerCompared: LogRule("consumer_compared", lambda event: ERROR if event.missing else INFO),
    events.ConsumerNotCompared: LogRule("consumer_not_compared", WARNING, repeats=True),
    events.ErasuresLookedAt: LogRule("erasures_looked_at", lambda event: WARNING if event.unfinished else DEBUG),
    events.RetentionApplied: LogRule("retention_applied", lambda event: WARNING if event.left else INFO),
    events.SignalReceived: LogRule("signal_received", lambda event: INFO if event.signal == "SIGHUP" else WARNING),
    events.Notified: LogRule("operator_notified", lambda event: INFO if event.sent else ERROR),
    events.AlertReceived: LogRule("alert_received", lambda event: WARNING if event.firing else INFO),
    events.BackupFound: LogRule("backup_found", DEBUG),
    events.CertificateSeen: LogRule("certificate_seen", DEBUG),
    events.Administered: LogRule(
        "admin_action", lambda event: WARNING if event.outcome == "refused" else INFO, repeats=True
    ),
}
NOT_LOGGED = frozenset({events.LoopTick})  # every iteration of every loop: it shows as a metric

_FIELD_NAMES = {
    "name": "breaker",
    "retry_in": "retry_in_s",
    "seconds": "duration_ms",
    "duration": "duration_ms",
    "size": "bytes",
}
_KEY_FIELDS = ("account", "name", "dependency", "loop", "sink", "result", "reason", "uid")


class EventLogger:
    """The observer that writes the log. Safe to call from every thread; `clock` in seconds, monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = logger("events")
        self._stdlib = logging.getLogger("email_ingestion.events")
        self._repeats = RepeatLimiter(REPEAT_SECONDS, clock)
        self._aggregator = LogAggregator(clock)
        self._down: set[tuple[str, str | None]] = set()

    def __call__(self, event: Event) -> None:
        """Observe an event."""
        rule = LOG_RULES.get(type(event))
        if rule:
            self._log_event(event, rule)
        for name, sums in self._aggregator.add(event):
            self._log.info(name, **sums)

    def _log_event(self, event: Event, rule: LogRule) -> None:
        level = self._level(event, rule)
        suppressed = 0
        if rule.repeats and level >= WARNING:
            left_out = self._repeats.allow(_key(event, rule))
            level, suppressed = (DEBUG, 0) if left_out is None else (level, left_out)
        if self._stdlib.isEnabledFor(level):
            more = {"suppressed": suppressed} if suppressed else {}
            self._log.log(level, rule.name, **_fields(event), **more)

    def _level(self, event: Event, rule: LogRule) -> int:
        if isinstance(event, events.Probed):
            probed = event.dependency, event.account
            if event.ok and probed in self._down:
                self._down.discard(probed)
                return INFO  # it is back: worth a line, unlike every other good answer
            if not event.ok:
                self._down.add(probed)
        return rule.level if isinstance(rule.level, int) else rule.level(event)


def _key(event: Event, rule: LogRule) -> Hashable:
    error = getattr(event, "error", None)
    values = tuple(str(getattr(event, field, "")) for field in _KEY_FIELDS)
    return (rule.name, error_type(error) if error else "", values)


def _fields(event: Event) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name in event.__struct_fields__:
        value = getattr(event, name)
        if isinstance(value, Exception):
            result |= _error_fields(value)
        elif value is not None:
            result |= _value_field(event, name, value)
    return result | _message(event, result)


def _error_fields(error: Exception) -> dict[str, Any]:
    result: dict[str, Any] = {"error_type": error_type(error), "message": describe_error(error)}
    if error.__cause__:
        result["cause"] = error_type(error.__cause__)
    if not isinstance(
        error, EmailIngestionError
    ):  # ours say where they come from; a foreign one may be a fault of ours
        result["exception"] = safe_traceback(error)
    return result


def _value_field(event: Event, name: str, value: Any) -> dict[str, Any]:
    if isinstance(event, events.Stalled) and name == "seconds":
        return {"silent_s": round(value, 1)}
    word = _FIELD_NAMES.get(name, name)
    if word == "duration_ms":
        return {word: round(value * 1000, 3)}
    return {word: round(value, 3) if isinstance(value, float) else value}


def _message(event: Event, logged: dict[str, Any]) -> dict[str, str]:
    """Return the sentence that operators search for, where the fields alone do not contain it."""
    cause = f": {logged['message']}" if "message" in logged else ""
    match event:
        case events.DeadLettered(reason="max_retries", attempts=attempts):
            return {"message": f"{MAX_RETRIES}: {attempts} attempts failed, moved to the dead letter queue{cause}"}
        case events.DeadLettered(reason=reason):
            return {"message": f"moved to the dead letter queue, {reason}{cause}"}
        case events.BreakerChanged(name=name, new="OPEN"):
            return {"message": f"circuit breaker {name} is OPEN, calls now end in CircuitBreakerError{cause}"}
        case events.Stalled(loop=loop, seconds=seconds):
            return {"message": f"loop {loop} has not turned for {seconds:.0f} s"}
        case events.ConsentEnding(ends_at=ends_at):
            day = datetime.fromtimestamp(ends_at, UTC).isoformat(timespec="minutes")
            return {"message": f"the consent ends {day}: run `python producer.py --auth-setup` before"}
        case _:
            return {}
