"""Backpressure: whether more mail may be fetched now. Gmail is the buffer, Redis is not.

The stream must have room, the day's download budget must have bytes left, and no operator may have paused the producer.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from email_ingestion.errors import TransientError
from email_ingestion.events import BytesSpent, FetchPaused, Observe
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.overrides import Feature, OperatorOverrides
from email_ingestion.stream import EMPTY_BACKLOG, Appender, DownloadQuota, StreamBacklog

FULL_SECONDS = 0.5  # between two checks of a full stream
BACKLOG_SECONDS = 0.1  # for which a check of the stream holds: it is a round trip, and there is one before each batch
HISTORY_DEPTH = 1000  # messages in the stream above which older mail waits: new mail is to wait behind few of it
HISTORY_SECONDS = 0.1  # between two checks whether older mail may be fetched
HISTORY_SHARE = 0.8  # of the budget; the rest is kept for new mail
BUDGET_SECONDS = 60.0  # between two checks of a budget that is used up
KEEPALIVE_SECONDS = 60.0
# A reservation asks for so many bytes where fewer are wanted, for each one is a round trip to a Redis that may be busy:
# but not for more than this part of the rest, nor than was spent on the connection, or crash upon crash would use up
# the day.
STRIDE_BYTES = 8 * 1024 * 1024
STRIDE_PART = 1 / 64


class StreamCapacity:
    """Whether the stream takes more mail: the limits of its size, and the overrides of operators."""

    def __init__(self, appender: Appender, overrides: OperatorOverrides, max_depth: int, max_bytes: int) -> None:
        self._appender = appender
        self._overrides = overrides
        self._max_depth = max_depth
        self._max_bytes = max_bytes

    def reason_to_wait(self, in_flight: StreamBacklog = EMPTY_BACKLOG, max_messages: int = sys.maxsize) -> str | None:
        """Return why nothing more should be fetched now, or None.

        `in_flight` was fetched and is not in the stream yet; from `max_messages` in the stream on the caller waits.
        """
        if self._overrides.active_pause():
            return "paused by an operator"
        backlog = self._appender.backlog(BACKLOG_SECONDS)
        soon = backlog + in_flight
        if soon.depth >= self._max_depth:
            return f"{backlog.depth} messages in the stream, STREAM_MAX_DEPTH is {self._max_depth}"
        if soon.volume >= self._max_bytes:
            return f"{backlog.volume} bytes in the stream, STREAM_MAX_BYTES is {self._max_bytes}"
        return f"{backlog.depth} messages in the stream come first" if soon.depth >= max_messages else None

    def wait(self) -> None:
        """Return when the stream takes more."""
        while self.reason_to_wait():
            time.sleep(FULL_SECONDS)

    def leaves_out(self, feature: Feature) -> bool:
        """Tell whether operators want this work not to be done: new mail alone, or all but this."""
        return self._overrides.is_at_or_below("DEGRADED") or self._overrides.is_off(feature)


class DownloadBudget:
    """One account's daily download budget: reserved before a download, corrected by the bytes that really came.

    For one thread. Its methods raise like `RedisLink.call`.
    """

    def __init__(self, account: str, quota: DownloadQuota, limit: int, observe: Observe) -> None:
        self._account = account
        self._quota = quota
        self._limit = limit
        self._observe = observe
        self._today = 0  # used in the last day by all processes, with `_reserved`
        self._reserved = 0  # granted and not spent
        self._reserved_within = 0  # the limit under which that was granted
        self._spent = 0  # since the last correction
        self._received = 0  # on this connection, at the last correction

    def reserve(self, size: int, share: float = 1.0) -> bool:
        """Tell whether `size` bytes may be downloaded now, out of this `share` of the budget."""
        limit = int(self._limit * share)
        granted = (self._reserved >= size and self._reserved_within <= limit) or self._request(size, limit)
        if granted:
            self._reserved -= size
            self._spent += size
        self._report(self._today - self._reserved if granted else self._today)
        return granted

    def _request(self, size: int, limit: int) -> bool:
        stride = min(STRIDE_BYTES, int((limit - self._today) * STRIDE_PART), self._received + self._spent)
        requested = max(size, stride)
        spending = self._quota.reserve(requested, limit)
        self._today = spending.today
        if spending.granted:
            self._reserved += requested
            self._reserved_within = limit
        return spending.granted

    def correct(self, received: int, *, last: bool = False) -> None:
        """Count the bytes that came, `received` on this connection so far, instead of the bytes that were reserved.

        With `last`, the end of the connection, the rest of the reservation is given back.
        """
        self._reserved += self._spent - (received - self._received)
        self._spent, self._received = 0, 0 if last else received
        if last or self._reserved < 0:
            self._today = self._quota.adjust(-self._reserved).today
            self._reserved = 0
            self._report(self._today)

    def _report(self, today: int) -> None:
        self._observe(BytesSpent(self._account, today, self._limit))


class Backpressure:
    """Paces one watcher, for its thread alone. `tick` is called at every check, so that waiting is no stall."""

    def __init__(
        self,
        account: str,
        capacity: StreamCapacity,
        budget: DownloadBudget,
        *,
        stopped: threading.Event,
        tick: Callable[[], None],
        observe: Observe,
    ) -> None:
        self._account = account
        self._capacity = capacity
        self._budget = budget
        self._stopped = stopped
        self._tick = tick
        self._observe = observe
        self._reason = ""
        self._last_noop = time.monotonic()

    def for_new_mail(self, size: int, in_flight: StreamBacklog = EMPTY_BACKLOG) -> float:
        """Return the seconds to wait before `size` bytes of new mail are fetched, 0 for none."""
        self._tick()
        reason = self._capacity.reason_to_wait(in_flight) or ""
        if not reason and not self._budget.reserve(size):
            reason = "IMAP_BYTES_PER_DAY is used up"
        self.report(reason)
        return FULL_SECONDS if reason else 0.0

    def for_history(self, size: int, in_flight: StreamBacklog) -> float:
        """Return the seconds to wait before `size` bytes of older mail are fetched, 0 for none."""
        self._tick()
        if self._capacity.leaves_out("history") or self._capacity.reason_to_wait(in_flight, HISTORY_DEPTH):
            return HISTORY_SECONDS
        return 0.0 if self._budget.reserve(size, HISTORY_SHARE) else BUDGET_SECONDS

    def takes_history(self) -> bool:
        """Tell whether older mail may be fetched; also when Redis is away, which the next sync reports."""
        self._tick()
        with suppress(TransientError):
            return not self._capacity.leaves_out("history") and not self._capacity.reason_to_wait(
                max_messages=HISTORY_DEPTH
            )
        return True

    def for_labels(self, size: int) -> float:
        """Return the seconds to wait before `size` bytes of labels are fetched; labels do not go into the stream."""
        self._tick()
        allowed = not self._capacity.leaves_out("labels") and self._budget.reserve(size, HISTORY_SHARE)
        return 0.0 if allowed else BUDGET_SECONDS

    def wait(self, connection: ImapMailbox) -> bool:
        """Wait until new mail may be fetched, keeping the connection alive; False when the watcher was stopped."""
        while seconds := self.for_new_mail(0):
            if not self.pause(connection, seconds):
                return False
        return not self._stopped.is_set()

    def pause(self, connection: ImapMailbox, seconds: float) -> bool:
        """Wait `seconds`, keeping the connection alive; False when the watcher was stopped."""
        self.keep_alive(connection)
        return not self._stopped.wait(seconds)

    def keep_alive(self, connection: ImapMailbox) -> None:
        """Send a NOOP when the last one is a minute ago."""
        if time.monotonic() - self._last_noop > KEEPALIVE_SECONDS:
            connection.noop()
            self._last_noop = time.monotonic()

    def report(self, reason: str) -> None:
        """Announce why nothing is fetched, or with "" that mail is fetched again, if that changed."""
        if reason != self._reason:
            self._reason = reason
            self._observe(FetchPaused(self._account, reason))

    def correct_budget(self, connection: ImapMailbox, *, last: bool = False) -> None:
        """Correct the budget by the bytes that came. While Redis is away the reserved bytes stay counted."""
        with suppress(TransientError):
            self._budget.correct(connection.received_bytes, last=last)
