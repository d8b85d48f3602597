"""When a mailbox is compared: what is asked for while a comparison runs is not answered by that one."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import pytest

from email_ingestion.breaker import Breaker, BreakerPolicy
from email_ingestion.errors import IMAPConnectionError
from email_ingestion.producer import reconcile_schedule
from email_ingestion.producer.reconcile_schedule import ReconcileSchedule


class Capacity:
    """Leaves out nothing, or every comparison."""

    def __init__(self) -> None:
        self.left_out = False

    def leaves_out(self, _feature: str) -> bool:
        return self.left_out


def schedule(capacity: Capacity, interval: float = 3600.0) -> ReconcileSchedule:
    breaker = Breaker("imap", BreakerPolicy(), (IMAPConnectionError,), lambda _: None)
    return ReconcileSchedule(capacity, interval, breaker)  # type: ignore[arg-type]


def two_steps() -> Iterator[None]:
    yield
    yield


def run_whole(made: ReconcileSchedule) -> int:
    steps = 0
    while made.step(two_steps):
        steps += 1
    return steps


def test_one_that_is_asked_for_while_another_runs_begins_after_it():
    made = schedule(Capacity())
    assert made.step(two_steps)
    made.run_soon()  # what was lost may be in the part that this one has compared
    assert made.step(two_steps)
    assert not made.step(two_steps)
    assert made.seconds_until_due <= 0
    assert run_whole(made) == 2
    assert made.seconds_until_due > 3000


def test_one_that_is_asked_for_runs_once():
    made = schedule(Capacity())
    assert run_whole(made) == 2
    assert run_whole(made) == 0
    made.run_soon()
    made.run_soon()
    assert run_whole(made) == 2
    assert run_whole(made) == 0


def test_one_that_was_asked_for_is_owed_until_one_has_come_to_its_end(monkeypatch: pytest.MonkeyPatch):
    """What it was asked for is lost mail; one that fails for itself waits a minute."""
    made = schedule(Capacity())
    run_whole(made)
    made.run_soon()
    assert made.step(two_steps)
    made.abort()  # it lost its connection
    assert 0 < made.seconds_until_due <= reconcile_schedule.ASKED_AGAIN_SECONDS
    assert made.is_owed
    assert run_whole(made) == 0  # not in each turn
    later = time.monotonic() + reconcile_schedule.ASKED_AGAIN_SECONDS
    monkeypatch.setattr(reconcile_schedule.time, "monotonic", lambda: later)
    assert run_whole(made) == 2
    assert not made.is_owed
    made.abort()
    assert made.seconds_until_due > 3000


def test_one_that_is_left_out_is_asked_for_later_and_not_in_each_turn():
    capacity = Capacity()
    made = schedule(capacity)
    run_whole(made)
    capacity.left_out = True
    made.run_soon()
    assert run_whole(made) == 0
    assert 0 < made.seconds_until_due <= 60


def test_where_nothing_is_compared_nothing_is_asked_for():
    made = schedule(Capacity(), math.inf)
    made.run_soon()
    assert made.seconds_until_due == math.inf
    assert run_whole(made) == 0
