"""How much older mail is asked for at once, so that new mail, which waits for the answer, waits for a moment only.

A server may need seconds for what another does at once: a slow line, sizes that it must read from its disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable

SLOW_SECONDS = 0.5  # a step that takes longer was too large: up to three are on their way when new mail comes
QUICK_SECONDS = 0.2
FIRST_SHARE = 1 / 16
SMALLEST_SHARE = 1 / 512


class PortionSize:
    """A part of the largest portion: small at first and on a slow server, all of it on one that answers quickly."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._share = FIRST_SHARE
        self._started = clock()

    def of(self, maximum: int) -> int:
        """Return the part of `maximum` to ask for next, at least 1."""
        return max(1, int(maximum * self._share))

    def start(self) -> None:
        """Begin to measure a step."""
        self._started = self._clock()

    def end_step(self) -> None:
        """Choose the next portions by the time the step took, and begin to measure the next one."""
        seconds = self._clock() - self._started
        if seconds > SLOW_SECONDS:
            self._share = max(SMALLEST_SHARE, self._share * max(0.1, SLOW_SECONDS / seconds / 2))
        elif seconds < QUICK_SECONDS:
            self._share = min(1.0, self._share * 2)
        self.start()
