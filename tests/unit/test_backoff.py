"""When to try again: pure arithmetic."""

from __future__ import annotations

import random
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from email_ingestion.backoff import backoff, delays, jittered

ATTEMPTS = st.integers(1, 10_000)


def test_the_wait_doubles_from_the_base_up_to_the_cap():
    assert [backoff(attempt, base=1.0, cap=10.0) for attempt in range(7)] == [0.0, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


@given(ATTEMPTS)
def test_no_attempt_waits_less_than_the_one_before_or_longer_than_the_cap(attempt: int):
    assert backoff(attempt) <= backoff(attempt + 1) <= 300.0


@given(st.floats(0, 1e6), st.integers())
def test_jitter_takes_up_to_half(seconds: float, seed: int):
    assert seconds / 2 <= jittered(seconds, random.Random(seed)) <= seconds


def test_endless_delays_grow_with_jitter():
    first = list(islice(delays(1.0, 4.0, random.Random(1)), 5))
    assert all(bound / 2 <= delay <= bound for delay, bound in zip(first, [1.0, 2.0, 4.0, 4.0, 4.0], strict=True))
