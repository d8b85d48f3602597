"""The breaker: opens after enough failures, lets one trial through when it is time, and closes by itself."""

from __future__ import annotations

import threading

import pytest

from email_ingestion.breaker import Breaker, BreakerPolicy
from email_ingestion.errors import CircuitBreakerError, PermanentError, TransientError
from email_ingestion.events import BreakerChanged, BreakerRejected
from tests.servers.links import Heard

POLICY = BreakerPolicy(fail_max=3, recovery_timeout=30.0, success_threshold=2)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def breaker(clock: Clock, heard: Heard) -> Breaker:
    return Breaker("imap", POLICY, (TransientError,), heard, clock)


def _fail(error: Exception | None = None):
    raise error or TransientError("it is away")


def _open(breaker: Breaker) -> None:
    for _ in range(POLICY.fail_max):
        with pytest.raises(TransientError):
            breaker.run(_fail)


def test_the_original_error_comes_out_even_when_it_opens_the_breaker(breaker: Breaker):
    _open(breaker)
    assert breaker.state == "OPEN"
    assert breaker.snapshot().last_error_type == "TransientError"


def test_it_opens_once_although_calls_that_had_begun_fail_as_well(breaker: Breaker, heard: Heard):
    def slow() -> None:
        _open(breaker)
        _fail()

    with pytest.raises(TransientError):
        breaker.run(slow)
    assert [(change.old, change.new) for change in heard.of(BreakerChanged)] == [("CLOSED", "OPEN")]


def test_an_open_breaker_does_not_call_and_says_when_it_will(breaker: Breaker, clock: Clock, heard: Heard):
    _open(breaker)
    clock.now += 10
    with pytest.raises(CircuitBreakerError) as caught:
        breaker.run(lambda: pytest.fail("called"))
    assert caught.value.retry_after == pytest.approx(20)
    assert len(heard.of(BreakerRejected)) == 1


def test_it_closes_by_itself_after_enough_successful_trials(breaker: Breaker, clock: Clock, heard: Heard):
    _open(breaker)
    clock.now += 30
    assert breaker.run(lambda: "one") == "one"
    assert breaker.state == "HALF_OPEN"
    assert breaker.run(lambda: "two") == "two"
    assert breaker.closed
    changes = [(event.old, event.new) for event in heard.of(BreakerChanged)]
    assert changes == [("CLOSED", "OPEN"), ("OPEN", "HALF_OPEN"), ("HALF_OPEN", "CLOSED")]


def test_a_failed_trial_opens_it_for_another_time(breaker: Breaker, clock: Clock):
    _open(breaker)
    clock.now += 30
    with pytest.raises(TransientError):
        breaker.run(_fail)
    assert breaker.state == "OPEN"
    assert breaker.retry_after() == pytest.approx(30)


def test_only_one_thread_makes_the_trial(breaker: Breaker, clock: Clock):
    _open(breaker)
    clock.now += 30
    inside, leave = threading.Event(), threading.Event()

    def trial() -> None:
        inside.set()
        leave.wait(10)

    thread = threading.Thread(target=breaker.run, args=(trial,))
    thread.start()
    assert inside.wait(10)
    with pytest.raises(CircuitBreakerError):
        breaker.run(lambda: pytest.fail("a second trial"))
    leave.set()
    thread.join()


def test_closed_it_lets_threads_through_side_by_side(breaker: Breaker):
    meeting = threading.Barrier(4)
    threads = [threading.Thread(target=breaker.run, args=(lambda: meeting.wait(10),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not meeting.broken


def test_an_error_that_speaks_for_the_dependency_is_no_failure(breaker: Breaker):
    for _ in range(10):
        with pytest.raises(PermanentError):
            breaker.run(lambda: _fail(PermanentError("a bad message")))
    assert breaker.closed


def test_held_open_it_calls_nothing_and_returns_by_itself(breaker: Breaker, clock: Clock, heard: Heard):
    breaker.force("OPEN", 5)
    assert (breaker.state, breaker.snapshot().forced, breaker.retry_after()) == ("OPEN", True, 5)
    with pytest.raises(CircuitBreakerError):
        breaker.run(lambda: pytest.fail("called"))
    clock.now += 5
    assert breaker.run(lambda: "through") == "through"
    assert (breaker.closed, breaker.snapshot().forced) == (True, False)
    assert [(event.old, event.new) for event in heard.of(BreakerChanged)] == [("CLOSED", "OPEN"), ("OPEN", "CLOSED")]


def test_released_from_open_it_is_as_it_was(breaker: Breaker):
    _open(breaker)
    breaker.force("OPEN", 900)
    breaker.release()
    assert (breaker.state, breaker.snapshot().forced, breaker.retry_after()) == ("OPEN", False, 30)


def test_held_closed_it_calls_and_counts_nothing(breaker: Breaker, clock: Clock, heard: Heard):
    _open(breaker)
    breaker.force("CLOSED", 60)
    for _ in range(2 * POLICY.fail_max):
        with pytest.raises(TransientError):
            breaker.run(_fail)
    assert (breaker.state, breaker.snapshot().failure_count, breaker.snapshot().forced) == ("CLOSED", 0, True)
    clock.now += 60
    _open(breaker)
    assert breaker.snapshot().forced is False
    assert [event.new for event in heard.of(BreakerChanged)] == ["OPEN", "CLOSED", "OPEN"]
