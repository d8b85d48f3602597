"""What operators ask of a process holds as long as it was asked for, and no longer."""

from __future__ import annotations

import pytest

from email_ingestion.control import Control, Order
from tests.unit.ops.shown import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def control(clock: Clock) -> Control:
    return Control("worker", clock)


def test_a_pause_ends_by_itself(control: Control, clock: Clock) -> None:
    assert control.paused() is None
    control.pause(60, "ada")
    clock.now += 59
    order = control.paused()
    assert order is not None
    assert (order.by, order.scope, control.remaining(order)) == ("ada", "process", 1)
    clock.now += 1
    assert control.paused() is None


def test_resume_lifts_what_this_process_was_asked_and_not_what_all_were(control: Control) -> None:
    control.pause(60, "ada")
    control.obey({"pause:worker": Order("", 30, "bob"), "pause:producer": Order("", 30, "bob")})
    control.resume()
    order = control.paused()
    assert order is not None
    assert (order.by, order.scope) == ("bob", "fleet")
    control.obey({"pause:producer": Order("", 30, "bob")})
    assert control.paused() is None


def test_orders_for_all_hold_on_while_nobody_can_read_them(control: Control, clock: Clock) -> None:
    control.obey({"level": Order("MINIMAL", 30, "bob")})
    clock.now += 29
    assert control.level == "MINIMAL"
    clock.now += 1
    assert control.level == "NORMAL"


def test_the_lowest_level_asked_for_holds(control: Control) -> None:
    control.degrade("MINIMAL", 30, "ada")
    control.obey({"level": Order("DEGRADED", 30, "bob")})
    assert control.level == "MINIMAL"
    control.degrade("NORMAL", 30, "ada")
    assert control.level == "DEGRADED"


def test_maintenance_and_levels_of_a_newer_release_pause(control: Control) -> None:
    control.degrade("MAINTENANCE", 30, "ada")
    assert control.paused() is not None
    control.degrade("NORMAL", 30, "ada")
    control.obey({"level": Order("HIBERNATION", 30, "bob")})
    assert control.level == "MAINTENANCE"
