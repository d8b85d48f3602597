"""Evaluates the built-in alerts in the producer, tells people of them, and opens incidents where that is wanted.

An alert is told once, repeated once a day while it lasts, and its end is told. What was sent is kept across restarts.
What somebody acknowledged or silenced is not told until that ends.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from prometheus_client.core import Metric

from email_ingestion.atomic_files import write_private
from email_ingestion.background import PeriodicThread
from email_ingestion.errors import ConfigurationError, OperationFailed
from email_ingestion.events import LoopFailed, Notified, Observe
from email_ingestion.ops.alert_channels import AlertChannels, configured_channels, sentences_about
from email_ingestion.ops.alert_silences import SILENCES_FILE, Silence, end_silences, read_silences
from email_ingestion.ops.alert_thresholds import CurrentThresholds, alert_thresholds
from email_ingestion.ops.builtin_alerts import (
    AGES,
    ALERT_RULES,
    PAUSE_CONSEQUENCES,
    RUNBOOK,
    AlertRule,
    MetricsSnapshot,
    is_consequence,
    rule_of,
)
from email_ingestion.ops.incident_opener import IncidentOpener
from email_ingestion.ops.logs import logger
from email_ingestion.ops.metrics import Metrics
from email_ingestion.ops.notices import NoticeItem, Notification
from email_ingestion.settings import Settings

STATE_FILE = Path("data/alerts.json")
ACTIVE_FILE = Path("data/active-alerts.json")  # what `alert list` shows
REPEAT_SECONDS = 86_400.0

AlertState = Literal["pending", "firing", "inhibited", "silenced"]


@dataclass(frozen=True, slots=True)
class ActiveAlert:
    """A rule whose condition holds for one account, breaker or folder; an inhibited alert is not notified."""

    rule: AlertRule
    subject: str
    sentence: str
    inhibited: bool
    runbook: str = RUNBOOK

    @property
    def link(self) -> str:
        """The address of the section that ends it."""
        return f"{self.runbook}#{self.rule.anchor}"

    @property
    def key(self) -> str:
        """The alert's name in the state file."""
        return f"{self.rule.name}/{self.subject}" if self.subject else self.rule.name

    @property
    def item(self) -> NoticeItem:
        """The alert as people are told of it."""
        return NoticeItem(self.key, self.rule.priority, self.sentence, self.link)


@dataclass
class MonitorFiles:
    """Where the monitor keeps what was sent, writes what is active, and reads what is silenced."""

    sent: Path = STATE_FILE
    active: Path = ACTIVE_FILE
    silences: Path = SILENCES_FILE


@dataclass
class _Silences:
    """The silences at one moment."""

    found: Sequence[Silence]
    now: float

    def active(self, key: str) -> Silence | None:
        return next((each for each in self.found if each.until > self.now and each.matches(key)), None)

    def ended_since(self, key: str, since: float) -> bool:
        return any(since < each.until <= self.now for each in self.found if each.matches(key))


class AlertMonitor:
    """Evaluates the rules each time `evaluate` is called.

    `read` returns the metric families. `send` returns whether the notification got through: if not, it is sent again
    at the next evaluation. `on_firing` is called with each alert that begins to fire. The links lead to `runbook`.
    """

    def __init__(
        self,
        read: Callable[[], Iterable[Metric]],
        send: Callable[[Notification], bool],
        files: MonitorFiles,
        *,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] | None = None,
        thresholds: Callable[[], Mapping[str, float]] = alert_thresholds,
        on_firing: Callable[[ActiveAlert], None] = lambda _alert: None,
        on_over: Callable[[AlertRule], None] = lambda _rule: None,
        runbook: str = RUNBOOK,
    ) -> None:
        self._read = read
        self._runbook = runbook
        self._thresholds = thresholds
        self._send = send
        self._on_firing = on_firing
        self._on_over = on_over
        self._files = files
        self._clock = clock
        self._ticks = ticks or clock
        self._looked = clock(), self._ticks()
        self._unproved_until = -math.inf  # by `ticks`: until then times are compared in vain, for the clock was set
        self._previous = MetricsSnapshot((), clock(), {})
        self._evaluations: dict[str, int] = {}  # by key: for how many evaluations in a row an alert has been active
        self._since: dict[str, float] = {}  # by key: Unix seconds
        self._announced: set[str] = set()  # keys of the alerts that `on_firing` was called with
        self._sent_at = _read_sent_times(files.sent)  # by key: Unix seconds

    def evaluate(self) -> None:
        """Read the metrics and send what is due; only then write, for the disk may be what has failed.

        Raises ConfigurationError or OperationFailed, when everything else is done, for a file that cannot be written or
        read. Of silences that cannot be read none counts: to tell too much is the lesser evil.
        """
        current = MetricsSnapshot(self._read(), self._clock(), self._thresholds())
        self._follow_clock(current)
        unproved = frozenset(AGES if self._ticks() < self._unproved_until else ())
        found = _active_alerts(self._previous, current, self._runbook, unproved)
        active = {alert.key: alert for alert in found}
        self._previous = current
        self._evaluations = {key: self._evaluations.get(key, 0) + 1 for key in active}
        self._since = {key: self._since.get(key, current.now) for key in active}
        with ExitStack() as afterwards:  # each is done whatever becomes of the others, the last one first
            silences = _Silences(self._read_silences(afterwards), current.now)
            if any(each.kind == "ack" for each in silences.found):
                afterwards.callback(self._end_acknowledgements, active, current.now)
            if self._send_due(active, silences):
                afterwards.callback(write_private, self._files.sent, json.dumps(self._sent_at))
            afterwards.callback(self._announce, active, silences)
            afterwards.callback(self._show, active, silences)

    def _follow_clock(self, current: MetricsSnapshot) -> None:
        """Notice that this machine's clock was set since the last look; what is known by time moves with it."""
        before, self._looked = self._looked, (current.now, self._ticks())
        step = (self._looked[0] - before[0]) - (self._looked[1] - before[1])
        if abs(step) <= current.thresholds["clock_seconds"]:
            return
        self._unproved_until = self._looked[1] + current.thresholds["freshness_seconds"]
        self._since = {key: at + step for key, at in self._since.items()}
        self._sent_at = {key: at + step for key, at in self._sent_at.items()}

    def _read_silences(self, afterwards: ExitStack) -> Sequence[Silence]:
        try:
            return read_silences(self._files.silences)
        except OperationFailed as error:
            afterwards.callback(_raise, error)
            return ()

    def _send_due(self, active: Mapping[str, ActiveAlert], silences: _Silences) -> bool:
        """Send what is due and what is over; return whether anything was sent."""
        due = {key: alert for key, alert in active.items() if self._is_due(alert, silences)}
        resolved = [key for key in self._sent_at if key not in active]
        if not (due or resolved) or not self._send(_notification(due, resolved)):
            return False
        kept = {key: at for key, at in self._sent_at.items() if key in active}
        self._sent_at = kept | dict.fromkeys(due, silences.now)
        return True

    def _end_acknowledgements(self, active: Mapping[str, ActiveAlert], now: float) -> None:
        """End the acknowledgements of what is over."""
        end_silences(lambda each: each.kind == "ack" and not any(map(each.matches, active)), now, self._files.silences)

    def _announce(self, active: Mapping[str, ActiveAlert], silences: _Silences) -> None:
        """Call `on_firing` for what begins to fire, and `on_over` for a rule of which nothing is active any more."""
        ended, self._announced = self._announced - set(active), self._announced & set(active)
        still = {key.partition("/")[0] for key in self._announced}
        for name in sorted({key.partition("/")[0] for key in ended} - still):
            if rule := rule_of(name):
                self._on_over(rule)
        for key, alert in active.items():
            if key not in self._announced and self._state(alert, silences) == "firing":
                self._announced.add(key)
                self._on_firing(alert)

    def _state(self, alert: ActiveAlert, silences: _Silences) -> AlertState:
        if alert.inhibited:
            return "inhibited"
        if self._evaluations[alert.key] < alert.rule.evaluations and alert.key not in self._sent_at:
            return "pending"
        return "silenced" if silences.active(alert.key) else "firing"

    def _is_due(self, alert: ActiveAlert, silences: _Silences) -> bool:
        if self._state(alert, silences) != "firing":
            return False
        sent_at = self._sent_at.get(alert.key)
        if sent_at is None or silences.now - sent_at >= REPEAT_SECONDS:
            return True
        return silences.ended_since(alert.key, sent_at)

    def _show(self, active: Mapping[str, ActiveAlert], silences: _Silences) -> None:
        rows = [
            {
                "alert": alert.key,
                "priority": alert.rule.priority,
                "state": self._state(alert, silences),
                "since": datetime.fromtimestamp(self._since[key], UTC).isoformat(timespec="seconds"),
                "text": alert.sentence,
                "runbook": alert.link,
            }
            for key, alert in active.items()
        ]
        looked_at = datetime.fromtimestamp(silences.now, UTC).isoformat(timespec="seconds")
        write_private(self._files.active, json.dumps({"looked_at": looked_at, "alerts": rows}, indent=1))


def _raise(error: Exception) -> None:
    raise error


def _active_alerts(
    previous: MetricsSnapshot, current: MetricsSnapshot, runbook: str, unproved: frozenset[str]
) -> Iterator[ActiveAlert]:
    """Yield what is active; of the names in `unproved` nothing is told now."""
    found = {rule: rule.condition(previous, current) for rule in ALERT_RULES}
    causes = [(rule.name, subject) for rule, sentences in found.items() for subject in sentences]
    # After a pause the first synchronization is awaited.
    paused = PAUSE_CONSEQUENCES if previous.value("paused") or current.value("paused") else set()
    for rule, sentences in found.items():
        for subject, sentence in sentences.items():
            alert = ActiveAlert(rule, subject, sentence, inhibited=rule.name in {*paused, *unproved}, runbook=runbook)
            yield replace(alert, inhibited=alert.inhibited or any(is_consequence(alert.key, *each) for each in causes))


def _notification(due: Mapping[str, ActiveAlert], resolved: Sequence[str]) -> Notification:
    over = []
    for key in resolved:
        rule = rule_of(key)
        over.append(NoticeItem(key, rule.priority if rule else "P2", "", over=True))
    return Notification((*(alert.item for alert in due.values()), *over))


def _read_sent_times(state_file: Path) -> dict[str, float]:
    try:
        return {str(key): float(at) for key, at in json.loads(state_file.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}  # nothing was sent yet, or it cannot be read: to notify twice is the lesser evil


@dataclass
class AlertThread:
    """The parts of the thread that evaluates the alerts: channels, thresholds and incidents of an installation."""

    settings: Settings
    metrics: Metrics
    observe: Observe
    incidents: IncidentOpener
    channels: AlertChannels | None = field(init=False)
    thresholds: CurrentThresholds = field(init=False)

    def __post_init__(self) -> None:
        """Raise ConfigurationError for a channel or a threshold that is wrong."""
        configured = configured_channels(self.settings)
        self.channels = AlertChannels(configured, self.settings.pagerduty_events_url) if configured else None
        self.thresholds = CurrentThresholds()
        for sentence in sentences_about(self.settings):
            logger("ops").warning("alert_channel_unused", message=sentence)

    def make(self) -> PeriodicThread:
        """Make the thread. Without a channel nobody is told; `alert list` shows what is active all the same."""
        monitor = AlertMonitor(
            self.metrics.registry.collect,
            self._send,
            MonitorFiles(),
            ticks=time.monotonic,
            thresholds=self._current_thresholds,
            on_firing=self._open_incident,
            on_over=self._note_end,
            runbook=f"{self.settings.runbook_base_url}/{RUNBOOK.rpartition('/')[2]}",
        )
        seconds = self.settings.alert_seconds
        return PeriodicThread("alerts", seconds, monitor.evaluate, immediate=False, on_error=self._failed)

    def _send(self, notification: Notification) -> bool:
        if self.channels is None:
            return False
        sent = self.channels.send(notification)
        firing, resolved = notification.firing, notification.resolved
        self.observe(Notified(len(firing), len(resolved), sent, firing, resolved))
        return sent

    def _open_incident(self, alert: ActiveAlert) -> None:
        if alert.rule.priority in self.settings.incident_from_alerts:
            try:
                self.incidents.open(alert.rule.name, alert.rule.priority, alert.sentence)
            except (OperationFailed, ConfigurationError) as error:
                self._failed(error)

    def _note_end(self, rule: AlertRule) -> None:
        if rule.priority in self.settings.incident_from_alerts:
            try:
                self.incidents.end(rule.name, rule.priority)
            except OperationFailed as error:
                self._failed(error)

    def _current_thresholds(self) -> Mapping[str, float]:
        try:
            return self.thresholds.read()
        except ConfigurationError as error:  # the file was changed and is wrong: those before hold
            self._failed(error)
            return self.thresholds.last

    def _failed(self, error: Exception) -> None:
        self.observe(LoopFailed("alerts", error, self.settings.alert_seconds))
