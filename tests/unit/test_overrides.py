"""What operators ask of a process holds as long as it was asked for, and no longer."""

from __future__ import annotations

import pytest

from email_ingestion.overrides import OperatorOverrides, Override
from tests.unit.ops.shown import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def control(clock: Clock) -> OperatorOverrides:
    return OperatorOverrides("worker", clock)


def test_a_pause_ends_by_itself(control: OperatorOverrides, clock: Clock) -> None:
    assert control.active_pause() is None
    control.pause(60, "ada")
    clock.now += 59
    order = control.active_pause()
    assert order is not None
    assert (order.by, order.scope, control.remaining(order)) == ("ada", "process", 1)
    clock.now += 1
    assert control.active_pause() is None


def test_resume_lifts_what_this_process_was_asked_and_not_what_all_were(control: OperatorOverrides) -> None:
    control.pause(60, "ada")
    control.apply_shared({"pause:worker": Override("", 30, "bob"), "pause:producer": Override("", 30, "bob")})
    control.resume()
    order = control.active_pause()
    assert order is not None
    assert (order.by, order.scope) == ("bob", "fleet")
    control.apply_shared({"pause:producer": Override("", 30, "bob")})
    assert control.active_pause() is None


def test_orders_for_all_hold_on_while_nobody_can_read_them(control: OperatorOverrides, clock: Clock) -> None:
    control.apply_shared({"level": Override("MINIMAL", 30, "bob")})
    clock.now += 29
    assert control.level == "MINIMAL"
    clock.now += 1
    assert control.level == "NORMAL"


def test_the_lowest_level_asked_for_holds(control: OperatorOverrides) -> None:
    control.set_level("MINIMAL", 30, "ada")
    control.apply_shared({"level": Override("DEGRADED", 30, "bob")})
    assert control.level == "MINIMAL"
    control.set_level("NORMAL", 30, "ada")
    assert control.level == "DEGRADED"


def test_maintenance_and_levels_of_a_newer_release_pause(control: OperatorOverrides) -> None:
    control.set_level("MAINTENANCE", 30, "ada")
    assert control.active_pause() is not None
    control.set_level("NORMAL", 30, "ada")
    control.apply_shared({"level": Override("HIBERNATION", 30, "bob")})
    assert control.level == "MAINTENANCE"


def test_an_order_about_a_part_of_the_work_ends_by_itself_and_can_be_taken_back(
    control: OperatorOverrides, clock: Clock
) -> None:
    control.order("batch-size", "7", 60, "ada")
    control.apply_shared({"batch-size": Override("5", 30, "bob"), "feature:history": Override("off", 30, "bob")})
    assert (control.batch_size(100), control.is_off("history"), control.is_off("labels")) == (5, True, False)
    control.apply_shared({})
    assert (control.batch_size(100), control.is_off("history")) == (7, False)
    control.order("batch-size", "", 1, "ada")
    assert control.batch_size(100) == 100
    control.order("sink:webhook", "paused", 60, "ada")
    assert (control.is_sink_paused("webhook"), control.paused_sinks()) == (True, ["webhook"])
    clock.now += 60
    assert (control.orders(), control.paused_sinks()) == ([], [])


def test_what_another_release_orders_and_this_one_does_not_know_is_left_alone(control: OperatorOverrides) -> None:
    control.apply_shared({"feature:later": Override("off", 30, "bob"), "batch-size": Override("lots", 30, "bob")})
    assert (control.orders(), control.batch_size(100)) == ([], 100)


def test_a_sender_is_known_by_address_or_domain_in_any_case(control: OperatorOverrides) -> None:
    control.order("block:*@flood.example", "blocked", 60, "ada")
    control.order("block:*.spam.example", "blocked", 60, "ada")
    control.order("block:ada@example.com", "blocked", 60, "ada")
    blocked = ("x@flood.example", "X@Flood.Example", "x@a.spam.example", "ADA@example.com")
    passed = ("x@flood.example.org", "x@other.example", "eve@example.com", "", "no address")
    assert all(control.blocking_pattern(each) for each in blocked)
    assert not any(control.blocking_pattern(each) for each in passed)
