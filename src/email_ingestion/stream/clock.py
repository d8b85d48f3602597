"""Notices that the wall clock of Redis went back, which makes the idle time of what is pending stand still."""

from __future__ import annotations

import time

TOLERANCE = 1.0  # seconds; below that an entry merely waits so much longer


class RedisClock:
    """Compares what Redis says with our own monotonic clock."""

    def __init__(self) -> None:
        self._told: tuple[float, float] | None = None

    def went_back(self, redis_now: float, now: float | None = None) -> bool:
        """Whether it did since the last call, or may have before the first; `redis_now` is TIME in seconds."""
        now = time.monotonic() if now is None else now
        told, self._told = self._told, (redis_now, now)
        return told is None or redis_now < told[0] + (now - told[1]) - TOLERANCE
