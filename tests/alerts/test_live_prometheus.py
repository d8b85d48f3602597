"""The alerts that have tiers, from the events of a loop to a firing alert, with a real Prometheus between.

`test_alert_rules` proves the rules on series that are written down; here a process shows them and Prometheus asks for
them. Time runs faster in the rules, so that minutes are fractions of a second.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from email_ingestion import events
from email_ingestion.errors import SinkUnavailable
from email_ingestion.ops import memory_limit
from email_ingestion.ops.http_server import serve
from email_ingestion.ops.memory_limit import MemoryUse
from email_ingestion.ops.observers import Ops, open_ops
from email_ingestion.ops.prometheus_targets import write_target
from tests.servers.processes import until
from tests.servers.prometheus import Prometheus, running_prometheus
from tests.unit.ops.shown import READING, WORKER, WORKER_NAMES

TIMES = 150.0  # ten minutes are four seconds
TURN_SECONDS = 0.05  # several turns between two scrapes, and few enough for a small machine
DAY = 86_400.0
DELIVERED = events.Delivered("default:gm:1", 1, duplicate=False, duration=0.01, queue_wait=0.1, end_to_end=1.0)
FAILED = events.Deferred("default:gm:2", 1, SinkUnavailable("the disk is full"), 1.0)
DEAD = events.DeadLettered("default:gm:3", "max_retries", 3, None)


class Worker:
    """What a worker shows while its loop announces what a test says, again and again."""

    def __init__(self, ops: Ops) -> None:
        self._ops = ops
        self._each_turn: list[events.Event] = []
        self._held_since: float | None = None
        self._stop = threading.Event()

    @contextmanager
    def running(self) -> Iterator[Worker]:
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def announce(self, *each_turn: events.Event) -> None:
        self._each_turn = list(each_turn)

    def hold(self, since: float | None) -> None:
        """Have a message in hand since then."""
        self._held_since = since

    def _run(self) -> None:
        while not self._stop.wait(TURN_SECONDS):
            stream = replace(READING.stream, oldest_pending_timestamp=self._held_since)
            self._ops.status.collect(lambda stream=stream: replace(READING, stream=stream))
            for event in self._each_turn:
                self._ops.observe(event)


@pytest.fixture
def prometheus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Worker, Prometheus]]:
    monkeypatch.chdir(tmp_path)
    ops = open_ops(WORKER, WORKER_NAMES, list)
    endpoints = serve(ops.status, ops.metrics, "127.0.0.1", 0, 0)
    write_target("worker", "worker", endpoints.metrics_url)
    try:
        with (
            Worker(ops).running() as worker,
            running_prometheus(tmp_path / "prometheus", tmp_path / "data" / "targets", times=TIMES) as found,
        ):
            yield worker, found
    finally:
        endpoints.close()


def probed(dependency: str, seconds: float) -> events.Event:
    return events.Probed(dependency, ok=True, seconds=seconds, error=None)


WELL = (DELIVERED, probed("redis", 0.001), probed("webhook", 0.1))
BROKEN = (  # two of three attempts fail, and one message dies for each that is delivered
    *(DELIVERED, FAILED, FAILED, DEAD, events.DefectsFound(1, {"charset": 1})),
    *(probed("redis", 0.9), probed("webhook", 9.0)),
)
FIRE = {
    **dict.fromkeys(("ErrorRateHigh", "DependencySlow", "LongRunningMessageWarning", "CertificateEnding"), "P3"),
    **dict.fromkeys(("ErrorRateSerious", "ErrorRateVeryHigh", "LongRunningMessageCritical"), "P2"),
    **dict.fromkeys(("CertificateEndingSoon", "MemoryNearLimit"), "P2"),
    "ErrorRateMajority": "P1",
}
FIRE_FOR_AN_HOUR = {"FailuresPerHourWarning": "P3", "FailuresPerHourCritical": "P2", "DefectsHigh": "P3"}


def test_every_tier_fires_with_its_priority_and_ends(
    prometheus: tuple[Worker, Prometheus], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, server = prometheus
    expected = FIRE | FIRE_FOR_AN_HOUR
    worker.announce(*WELL)
    until(lambda: server.query("rate(email_ingestion_emails_processed_total[5s]) > 0"), "Prometheus sees the worker")
    assert expected.keys() & server.firing().keys() == set()
    with monkeypatch.context() as patch:
        patch.setattr(memory_limit, "memory_use", lambda: MemoryUse(95, 100))
        worker.hold(time.time() - 660)
        worker.announce(*BROKEN, events.CertificateSeen("redis", time.time() + DAY))
        fired: dict[str, str] = {}
        until(
            lambda: fired.update(server.firing()) or expected.items() <= fired.items(), f"all of these fire: {expected}"
        )
    worker.hold(None)
    worker.announce(*WELL, events.CertificateSeen("redis", time.time() + 90 * DAY))
    until(lambda: FIRE.keys() & server.firing().keys() == set(), "they are over")
