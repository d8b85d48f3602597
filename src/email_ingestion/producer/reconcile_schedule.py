"""When the mailbox is compared with what became of its mail (`reconcile`): one step between two syncs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

from email_ingestion.breaker import Breaker
from email_ingestion.producer.backpressure import StreamCapacity

ASKED_AGAIN_SECONDS = 5.0  # until one that was asked for, and failed or lost its connection, starts again
RETRY_SECONDS = 60.0  # until a comparison that failed starts again, or its usual time if that is sooner
END = object()


class ReconcileSchedule:
    """Runs one comparison every `interval` seconds (infinite: never); it outlives the connections."""

    def __init__(self, capacity: StreamCapacity, interval: float, imap_breaker: Breaker) -> None:
        self._capacity = capacity
        self._interval = interval
        self._imap = imap_breaker
        self._due = self._first_due = time.monotonic() if interval < math.inf else math.inf
        self._steps: Iterator[None] | None = None
        self._soon = False  # somebody asked for one that begins from now on
        self._not_before = -math.inf  # for one that is asked for
        self._answers = False  # the running one was asked for

    @property
    def seconds_until_due(self) -> float:
        """Seconds until the next comparison is due; negative when it is late."""
        return (max(self._first_due, self._not_before) if self._soon else self._due) - time.monotonic()

    @property
    def is_owed(self) -> bool:
        """Whether one that somebody asked for has not come to its end."""
        return self._soon or self._answers

    def run_soon(self) -> None:
        """Make one due now, after one that runs: something happened that only a comparison finds; from any thread."""
        self._soon = True

    def abort(self) -> None:
        """Forget the running comparison: it failed, or lost its connection. What was asked for is still owed."""
        self._steps = None
        if self._answers:
            self._answers, self._soon = False, True
            self._not_before = time.monotonic() + ASKED_AGAIN_SECONDS

    def step(self, start: Callable[[], Iterator[None]]) -> bool:
        """Take the next step of a comparison that runs or is due; tell whether it has more steps.

        `start` starts a comparison on the present connection and returns its steps.
        """
        if not self._steps:
            if self.seconds_until_due > 0:
                return False
            asked, self._soon = self._soon, False
            if self._capacity.leaves_out("audit"):
                self._postpone()
                return False
            self._answers = asked
            self._steps = start()
        steps = self._steps
        # Whatever goes wrong in the step, the comparison does not start again at once: it must not hold up the mail.
        self._postpone()
        if self._imap.run(lambda: next(steps, END)) is not END:
            return True
        self._steps, self._answers = None, False
        self._due = time.monotonic() + self._interval
        return False

    def _postpone(self) -> None:
        self._due = time.monotonic() + min(RETRY_SECONDS, self._interval)
