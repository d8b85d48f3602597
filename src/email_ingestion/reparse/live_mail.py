"""Lets live mail pass first: a reparse waits while messages wait in the stream, and goes on slowly if that lasts."""

from __future__ import annotations

import time
from collections.abc import Callable

from email_ingestion.errors import TransientError

POLL_SECONDS = 0.1  # between two looks at the stream while mail waits in it
LONGEST_SECONDS = 5.0  # after which a batch goes ahead all the same: a stream that is never empty must not stop it
BLIND_SECONDS = 10.0  # until Redis is asked again when it did not answer: then no mail comes either


class LiveMail:
    """Knows whether mail waits; `count` counts the waiting messages, or raises TransientError."""

    def __init__(
        self,
        count: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._count = count
        self._clock = clock
        self._sleep = sleep
        self._blind_until = -BLIND_SECONDS

    def let_pass(self) -> None:
        """Return when no mail waits, or when it was waited for long enough."""
        end = self._clock() + LONGEST_SECONDS
        while self._waits() and self._clock() < end:
            self._sleep(POLL_SECONDS)

    def _waits(self) -> bool:
        if self._clock() < self._blind_until:
            return False
        try:
            return self._count() > 0
        except TransientError:
            self._blind_until = self._clock() + BLIND_SECONDS
            return False
