"""Turns each event into at most one log line: its name and its level are decided here; nothing is counted.

Messages in flight are told one by one at DEBUG, and at INFO as one sum per second. A failure that repeats is told at
once and then at most every 30 s, with the number of those left out, which go out at DEBUG. Every name is in
`docs/log-events.md`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from email_ingestion import events
from email_ingestion.errors import EmailIngestionError
from email_ingestion.events import Event
from email_ingestion.ops.logs import logger
from email_ingestion.ops.summary import Summary
from email_ingestion.ops.wording import error_type, sentence, stack

REPEAT_SECONDS = 30.0
MAX_RETRIES = "delivery attempts exceeded max_retries"

DEBUG, INFO, WARNING, ERROR, CRITICAL = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class Rule:
    """How a kind of event is told; `repeats` marks failures that may come in a flood."""

    name: str
    level: int | Callable[[Any], int]
    repeats: bool = False


RULES: dict[type[Event], Rule] = {
    events.Started: Rule("process_started", INFO),
    events.Stopping: Rule("process_stopping", INFO),
    events.Stopped: Rule("process_stopped", INFO),
    events.Stalled: Rule("loop_stalled", CRITICAL),
    events.LoopFailed: Rule("loop_failed", ERROR, repeats=True),
    events.StacksDumped: Rule("stacks_dumped", WARNING),
    events.Connected: Rule("imap_connected", INFO),
    events.ConnectionFailed: Rule("imap_connection_failed", ERROR, repeats=True),
    events.SessionEnded: Rule("imap_session_ended", INFO),
    events.LockedOut: Rule("imap_locked_out", lambda event: ERROR if event.error else INFO, repeats=True),
    events.Slowed: Rule("imap_slowed", lambda event: WARNING if event.seconds else INFO, repeats=True),
    events.Quarantined: Rule("message_quarantined", WARNING, repeats=True),
    events.QuarantineCounted: Rule("quarantine_counted", DEBUG),
    events.WatcherRebuilt: Rule("imap_watcher_rebuilt", ERROR),
    events.Watching: Rule("imap_watch_changed", DEBUG),
    events.LeaseChanged: Rule("lease_changed", lambda event: WARNING if event.lost else INFO),
    events.Synced: Rule("imap_synced", DEBUG),
    events.NewMailWaiting: Rule("imap_mail_waiting", DEBUG),
    events.HistoryWalked: Rule("history_walked", DEBUG),
    events.LabelsChanged: Rule("labels_changed", INFO),
    events.Downloaded: Rule("imap_downloaded", DEBUG),
    events.BytesSpent: Rule("imap_budget_spent", DEBUG),
    events.MailboxChanged: Rule("imap_uidvalidity_changed", WARNING),
    events.Published: Rule("batch_published", DEBUG),
    events.Skipped: Rule("batch_skipped", DEBUG),
    events.TooLarge: Rule("message_too_large", WARNING),
    events.FetchPaused: Rule("fetching_held", lambda event: WARNING if event.reason else INFO, repeats=True),
    events.TokenRefreshed: Rule("token_refreshed", INFO),
    events.TokenRefreshFailed: Rule(
        "token_refresh_failed", lambda event: ERROR if event.permanent else WARNING, repeats=True
    ),
    events.ConsentEnding: Rule("consent_ending", WARNING, repeats=True),
    events.NeedsOperator: Rule("operator_needed", ERROR, repeats=True),
    events.Delivered: Rule("email_delivered", DEBUG),
    events.SyntheticHandled: Rule(
        "rehearsal_completed", lambda event: DEBUG if event.delivered else WARNING, repeats=True
    ),
    events.CanarySeen: Rule("canary_seen", lambda event: DEBUG if event.delivered else ERROR, repeats=True),
    events.SinkBacklog: Rule("sink_owed", DEBUG),
    events.SinkDelivered: Rule(
        "sink_delivered", lambda event: WARNING if event.result == "failed" else DEBUG, repeats=True
    ),
    events.Deferred: Rule("email_deferred", WARNING, repeats=True),
    events.DeadLettered: Rule("email_dead_lettered", ERROR),
    events.Reclaimed: Rule("entries_reclaimed", WARNING),
    events.OwnershipLost: Rule("entries_superseded", WARNING, repeats=True),
    events.RedisFailed: Rule("redis_failed", ERROR, repeats=True),
    events.BreakerChanged: Rule("breaker_changed", lambda event: ERROR if event.new == "OPEN" else INFO),
    events.BreakerRejected: Rule("breaker_rejected", WARNING, repeats=True),
    events.Probed: Rule("dependency_probed", lambda event: DEBUG if event.ok else WARNING, repeats=True),
    events.Reconciled: Rule("mailbox_reconciled", lambda event: WARNING if event.missing else INFO),
    events.Notified: Rule("operator_notified", lambda event: INFO if event.sent else ERROR),
    events.BackupFound: Rule("backup_found", DEBUG),
    events.Administered: Rule(
        "admin_action", lambda event: WARNING if event.outcome == "refused" else INFO, repeats=True
    ),
}
UNTOLD = frozenset({events.LoopTick})  # every iteration of every loop: it shows as a metric

_WORDS = {
    "name": "breaker",
    "retry_in": "retry_in_s",
    "seconds": "duration_ms",
    "duration": "duration_ms",
    "size": "bytes",
}
_TELLS_APART = ("account", "name", "dependency", "loop", "sink", "result", "reason")


class Narrator:
    """The observer that writes the log. Safe to call from every thread; `clock` in seconds, monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = logger("events")
        self._stdlib = logging.getLogger("email_ingestion.events")
        self._repeats = Repeats(REPEAT_SECONDS, clock)
        self._summary = Summary(clock)
        self._down: set[str] = set()

    def __call__(self, event: Event) -> None:
        """Observe an event."""
        rule = RULES.get(type(event))
        if rule:
            self._tell(event, rule)
        for name, sums in self._summary.take(event):
            self._log.info(name, **sums)

    def _tell(self, event: Event, rule: Rule) -> None:
        level = self._level(event, rule)
        suppressed = 0
        if rule.repeats and level >= WARNING:
            left_out = self._repeats.allow(_key(event, rule))
            level, suppressed = (DEBUG, 0) if left_out is None else (level, left_out)
        if self._stdlib.isEnabledFor(level):
            more = {"suppressed": suppressed} if suppressed else {}
            self._log.log(level, rule.name, **_fields(event), **more)

    def _level(self, event: Event, rule: Rule) -> int:
        if isinstance(event, events.Probed):
            if event.ok and event.dependency in self._down:
                self._down.discard(event.dependency)
                return INFO  # it is back: worth a line, unlike every other good answer
            if not event.ok:
                self._down.add(event.dependency)
        return rule.level if isinstance(rule.level, int) else rule.level(event)


class Repeats:
    """Decides which of a run of equal failures is told."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._told: dict[Hashable, tuple[float, int]] = {}  # when it was last told, how many were left out since

    def allow(self, key: Hashable) -> int | None:
        """How many were left out since the last one told; None when this one is to be left out too."""
        with self._lock:
            now = self._clock()
            last, left_out = self._told.get(key, (None, 0))
            if last is not None and now - last < self._seconds:
                self._told[key] = (last, left_out + 1)
                return None
            self._told[key] = (now, 0)
            return left_out


def _key(event: Event, rule: Rule) -> Hashable:
    error = getattr(event, "error", None)
    what = tuple(str(getattr(event, field, "")) for field in _TELLS_APART)
    return (rule.name, error_type(error) if error else "", what)


def _fields(event: Event) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for field in fields(event):
        value = getattr(event, field.name)
        if isinstance(value, Exception):
            told |= _of_error(value)
        elif value is not None:
            told |= _of_value(event, field.name, value)
    return told | _message(event, told)


def _of_error(error: Exception) -> dict[str, Any]:
    found: dict[str, Any] = {"error_type": error_type(error), "message": sentence(error)}
    if error.__cause__:
        found["cause"] = error_type(error.__cause__)
    if not isinstance(
        error, EmailIngestionError
    ):  # ours say where they come from; a foreign one may be a fault of ours
        found["exception"] = stack(error)
    return found


def _of_value(event: Event, name: str, value: Any) -> dict[str, Any]:
    if isinstance(event, events.Stalled) and name == "seconds":
        return {"silent_s": round(value, 1)}
    word = _WORDS.get(name, name)
    if word == "duration_ms":
        return {word: round(value * 1000, 3)}
    return {word: round(value, 3) if isinstance(value, float) else value}


def _message(event: Event, told: dict[str, Any]) -> dict[str, str]:
    """The sentence an operator searches for, where the event alone would not hold it."""
    because = f": {told['message']}" if "message" in told else ""
    match event:
        case events.DeadLettered(reason="max_retries", attempts=attempts):
            return {"message": f"{MAX_RETRIES} ({attempts}), moved to the dead letter queue{because}"}
        case events.DeadLettered(reason=reason):
            return {"message": f"moved to the dead letter queue, {reason}{because}"}
        case events.BreakerChanged(name=name, new="OPEN"):
            return {"message": f"circuit breaker {name} is OPEN, calls now end in CircuitBreakerError{because}"}
        case events.Stalled(loop=loop, seconds=seconds):
            return {"message": f"loop {loop} has not turned for {seconds:.0f} s"}
        case events.ConsentEnding(ends_at=ends_at):
            day = datetime.fromtimestamp(ends_at, UTC).isoformat(timespec="minutes")
            return {"message": f"the consent ends {day}: run `python producer.py --auth-setup` before"}
        case _:
            return {}
