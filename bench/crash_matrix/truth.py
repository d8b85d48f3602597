"""What was told while mail stood still, and after how many seconds: by /ready, /status, metrics, alerts and `doctor`.

The alerts are the conditions of the built-in ones, as soon as they hold: how long a notice then waits is a setting.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException

from prometheus_client.parser import text_string_to_metric_families

from bench.crash_matrix.world import World
from email_ingestion.ops.alert_thresholds import alert_thresholds
from email_ingestion.ops.builtin_alerts import ALERT_RULES, MetricsSnapshot
from tests.servers.processes import Running

LOOK_SECONDS = 0.5
SILENCE_SECONDS = 30.0  # for which mail may stand still before somebody says why
DOCTOR_AFTER = 5.0  # seconds of standstill: it takes seconds of a processor itself
DOCTOR_SECONDS = 60.0
READY, STATUS, METRICS, ALERTS, DOCTOR = SOURCES = ("/ready", "/status", "metrics", "alerts", "doctor")
# Each of these must not call well for so long what is not. A backlog alone makes no alert: its thresholds are settings.
ANSWERABLE = (READY, STATUS, METRICS, DOCTOR)
# Gauges that are zero when all is well, by the value that says otherwise.
CAUSES: dict[str, Callable[[float], bool]] = {
    "dependency_up": lambda value: value == 0,
    "circuit_breaker_state": lambda value: value > 0,
    "missing_processes": lambda value: value > 0,
    "oauth2_reauth_required": lambda value: value > 0,
    "imap_quarantined_messages": lambda value: value > 0,
    "paused": lambda value: value > 0,
}


@dataclass
class Truth:
    """For each source, the longest time for which mail stood still and it gave no reason; and what was said first."""

    silent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SOURCES, 0.0))  # seconds
    asked: set[str] = field(default_factory=set)  # the sources that were asked: mail stood still long enough
    reason: str = ""
    after: float = 0.0  # seconds of standstill until anybody said the reason

    def merge(self, other: Truth) -> None:
        """Keep the worse of two."""
        self.silent = {source: max(self.silent[source], other.silent[source]) for source in SOURCES}
        self.asked |= other.asked
        if not self.reason or (other.reason and other.after > self.after):
            self.reason, self.after = other.reason, other.after

    def complaints(self) -> list[str]:
        """Name the sources that called well for too long what was not."""
        late = {source: self.silent[source] for source in ANSWERABLE if self.silent[source] > SILENCE_SECONDS}
        return [
            f"mail stood still for {seconds:.0f} s, and {source} told no reason" for source, seconds in late.items()
        ]


@contextmanager
def watching(world: World, deliverable: int, usual: set[str] | None = None) -> Iterator[Truth]:
    """Look at progress, and at what is told while there is none; `deliverable` messages were there before.

    `usual` is what `doctor` finds while nothing is wrong; it is asked only where that is known.
    """
    truth, ended = Truth(), threading.Event()
    watch = Watch(world, truth, ended, deliverable, usual or set())
    runs = [watch.look] if usual is None else [watch.look, watch.ask_doctor]
    threads = [threading.Thread(target=run, name="truth", daemon=True) for run in runs]
    for thread in threads:
        thread.start()
    try:
        yield truth
    finally:
        ended.set()
        for thread in threads:
            thread.join()


class Watch:
    """Asks each source again and again while mail stands still; a process that does not answer has told."""

    def __init__(
        self, world: World, truth: Truth, ended: threading.Event, delivered: int, usual: Collection[str]
    ) -> None:
        self._world, self._truth, self._ended, self._usual = world, truth, ended, usual
        self._delivered = delivered
        self._moved = time.monotonic()  # when mail moved last, or none waited
        self._told = dict.fromkeys(SOURCES, self._moved)  # when each source last told a reason, or mail moved
        self._telling: set[str] = set()  # the sources whose last answer gave a reason, and mail has not moved since
        self._thresholds = alert_thresholds()
        self._metrics: dict[str, MetricsSnapshot] = {}

    def look(self) -> None:
        """Run until the end."""
        while not self._ended.wait(LOOK_SECONDS):
            now = self._world.delivered()
            if now is not None and (now != self._delivered or now >= self._world.arrived):
                self._delivered, self._moved = now, time.monotonic()
                self._told = dict.fromkeys(SOURCES, self._moved)
                self._telling.clear()
                continue
            if time.monotonic() - self._moved > LOOK_SECONDS:
                said = [self._ask(name, running) for name, running in list(self._world.running.items())]
                for source in (READY, STATUS, METRICS, ALERTS):
                    reason = next((each[source] for each in said if each.get(source)), "" if said else "nobody runs")
                    self._note(source, reason, time.monotonic())

    def ask_doctor(self) -> None:
        """Run `doctor` now and then, when mail has stood still for a while; it takes too long to ask in between."""
        while not self._ended.wait(LOOK_SECONDS):
            moved = self._moved
            if time.monotonic() - moved > DOCTOR_AFTER:
                asked = time.monotonic()
                wrong = findings(self._world) - self._usual
                if self._moved == moved:
                    self._note(DOCTOR, min(wrong, default=""), asked)  # it tells of the time when it looks

    def _note(self, source: str, reason: str, now: float) -> None:
        """Keep for how long a source told no reason; not the time between two answers that both gave one."""
        silent = now - max(self._moved, self._told[source])
        self._truth.asked.add(source)
        if not (reason and source in self._telling):
            self._truth.silent[source] = max(self._truth.silent[source], silent)
        self._telling.discard(source)
        if reason:
            self._telling.add(source)
            self._told[source] = now
            if not self._truth.reason:
                self._truth.reason, self._truth.after = f"{source}: {reason}", now - self._moved

    def _ask(self, name: str, running: Running) -> dict[str, str]:
        """Return the reasons that a process gives, by source."""
        try:
            ready = json.loads(running.get("/ready")[1])
            status = running.status()
            metrics = running.get("/metrics")[1]
        except (AssertionError, OSError, ValueError, HTTPException):
            return dict.fromkeys((READY, STATUS, METRICS, ALERTS), f"{name} does not answer")
        now = MetricsSnapshot(text_string_to_metric_families(metrics), time.time(), self._thresholds)
        before = self._metrics.setdefault(name, now)
        return {
            READY: "" if ready["status"] == "ready" else f"{name}: {ready['status']}: {'; '.join(ready['reasons'])}",
            STATUS: _of_status(name, status),
            METRICS: next((f"{name}: {gauge}" for gauge, bad in CAUSES.items() if _any(now, gauge, bad)), ""),
            ALERTS: next((f"{name}: {rule.name}" for rule in ALERT_RULES if rule.condition(before, now)), ""),
        }


def findings(world: World) -> set[str]:
    """Return the names of the checks that `doctor` does not call ok; nothing where it hangs."""
    with suppress(subprocess.TimeoutExpired, ValueError):
        done = world.here.run("-m", "email_ingestion", "doctor", "--json", seconds=DOCTOR_SECONDS)
        return {each["check"] for each in json.loads(done.stdout)["checks"] if each["verdict"] != "ok"}
    return set()


def _of_status(name: str, status: dict[str, object]) -> str:
    open_breakers = [each["name"] for each in status["circuit_breakers"] if each["state"] != "CLOSED"]  # type: ignore[attr-defined]
    unwell = [each["name"] for each in status["checks"] if each["status"] == "unhealthy"]  # type: ignore[attr-defined]
    if status["status"] != "ready" or open_breakers or unwell:
        return f"{name}: {status['status']} {open_breakers} {unwell}"
    return ""


def _any(snapshot: MetricsSnapshot, name: str, bad: Callable[[float], bool]) -> bool:
    labels = ("dependency", "name", "kind", "account", "loop", "")
    return any(bad(value) for label in labels for value in snapshot.by_label(name, label).values())
