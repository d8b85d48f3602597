"""When to try again: pure arithmetic, no waiting and no clock."""

from __future__ import annotations

import random
from collections.abc import Iterator


def backoff(attempt: int, base: float = 1.0, cap: float = 300.0) -> float:
    """Seconds to wait after the `attempt`-th failure (1-based): doubling from `base` up to `cap`; 0 for attempt 0."""
    return 0.0 if attempt < 1 else min(cap, base * 2.0 ** min(attempt - 1, 60))


def jittered(seconds: float, rng: random.Random) -> float:
    """Between half of `seconds` and all of it, so that many who failed together do not return together."""
    return seconds * (0.5 + rng.random() / 2)


def delays(base: float, cap: float, rng: random.Random) -> Iterator[float]:
    """Endless jittered back-off, in seconds."""
    attempt = 0
    while True:
        attempt += 1
        yield jittered(backoff(attempt, base, cap), rng)
