"""Portions of older mail are as large as a server can answer while new mail waits."""

from __future__ import annotations

from email_ingestion.producer.portion_size import PortionSize


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def portions(seconds_each: float, steps: int) -> list[int]:
    """The messages of each step, on a server that takes so long for each message."""
    clock = Clock()
    portion_size = PortionSize(clock)
    asked = []
    for _ in range(steps):
        asked.append(portion_size.of(500))
        clock.now += asked[-1] * seconds_each
        portion_size.end_step()
    return asked


def test_a_quick_server_is_soon_asked_for_everything():
    assert portions(0.0001, 8)[4:] == [500] * 4


def test_a_slow_server_is_asked_for_what_it_does_in_half_a_second():
    assert all(portion * 0.05 <= 0.55 for portion in portions(0.05, 20)[2:])
    assert max(portions(0.05, 20)[2:]) >= 4


def test_a_very_slow_server_is_asked_for_one_after_the_other():
    assert portions(3.0, 20)[5:] == [1] * 15


def test_waiting_on_purpose_is_no_part_of_a_step():
    clock = Clock()
    portion_size = PortionSize(clock)
    clock.now = 60.0
    portion_size.start()
    portion_size.end_step()
    assert portion_size.of(500) > PortionSize(clock).of(500)
