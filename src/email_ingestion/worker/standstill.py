"""Why the mail that has waited longest for a sink does not get there, in words for an operator; it changes nothing.

`ops` shows the words when the same message has waited for a while. While mail flows they cost nothing: the database is
asked only when the oldest message is the one of the last look.
"""

from __future__ import annotations

import threading
from datetime import datetime

from email_ingestion.breaker import Breaker
from email_ingestion.ledger.outbox import LongestWaiting, Outbox, WaitingDeliveries


class StandstillWatch:
    """Looks at what waits for one sink, a few seconds apart."""

    def __init__(self, sink: str, outbox: Outbox, breaker: Breaker, suspects: threading.Lock, instance: str) -> None:
        self._sink = sink
        self._outbox = outbox
        self._breaker = breaker
        self._suspects = suspects
        self._instance = instance
        self._seen: datetime | int | None = None  # what waited longest at the last look

    def explain(self, backlog: WaitingDeliveries, *, paused: bool, pause: float) -> str | None:
        """Return why nothing has moved since the last look; None when something has, or nothing waits.

        `pause` is for how many seconds more the dispatcher tries nothing. Raises SinkUnavailable.
        """
        waits = backlog.oldest or backlog.resends or None
        before, self._seen = self._seen, waits
        if waits is None or waits != before:
            return None
        if paused:
            return f"an operator has paused it: `email-ingestion sink resume {self._sink}`, or `resume worker`"
        if not self._breaker.closed:
            return f"its circuit breaker is {self._breaker.state}"
        if pause > 0:
            return f"it is tried again in {pause:.0f} s"
        oldest = self._outbox.longest_waiting(self._sink)
        return self._describe(oldest) if oldest else None

    def _describe(self, oldest: LongestWaiting) -> str:
        email_id, wait = oldest.email_id, oldest.due_in
        if wait is None:
            return f"{email_id} is to be sent again, and is not taken though nothing else is due"
        if oldest.holder is None and wait > 0:
            failed = (
                f"attempt {oldest.attempts} at {email_id} failed" if oldest.attempts > 0 else f"{email_id} is put off"
            )
            return f"{failed}, and it is due in {wait:.0f} s"
        if oldest.holder is None:
            return f"{email_id} is due and is not taken"
        if wait > 0:
            holder = "this worker" if oldest.holder == self._instance else oldest.holder
            return f"{holder} has {email_id} in hand, for {wait:.0f} s more unless it asks for longer"
        behind = ", and another such message is in hand" if self._suspects.locked() else ""
        return f"{oldest.holder} let {email_id} go without a word, so it is tried alone{behind}"
