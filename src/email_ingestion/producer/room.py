"""Whether more may be fetched now: room in the stream, bytes in the day's budget, and no order against it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from email_ingestion.errors import TransientError
from email_ingestion.events import FetchPaused, Observe
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.producer.budget import HISTORY_SHARE, Budget
from email_ingestion.producer.work import Work
from email_ingestion.stream import EMPTY_BACKLOG, StreamBacklog

LOOK_SECONDS = 0.5
HISTORY_DEPTH = 1000  # messages in the stream above which older mail waits: new mail is to wait behind few of it
HISTORY_SECONDS = 0.1  # until it is looked at again
BUDGET_SECONDS = 60.0  # until a budget that is used up is looked at again
KEEPALIVE_SECONDS = 60.0


class Room:
    """Of one account's watcher, for its thread alone; `turned` is called while it waits."""

    def __init__(
        self,
        account: str,
        work: Work,
        budget: Budget,
        *,
        stopped: threading.Event,
        turned: Callable[[], None],
        observe: Observe,
    ) -> None:
        self._account = account
        self._work = work
        self._budget = budget
        self._stopped = stopped
        self._turned = turned
        self._observe = observe
        self._held = ""
        self._spoke = time.monotonic()

    def wait(self, connection: ImapMailbox) -> bool:
        """Hold until the stream has room, keeping the connection; False when told to stop."""
        while pause := self.at_once(0):
            if not self.rest(connection, pause):
                return False
        return not self._stopped.is_set()

    def rest(self, connection: ImapMailbox, seconds: float) -> bool:
        """Wait so long, keeping the connection; False when told to stop."""
        self.keep_alive(connection)
        return not self._stopped.wait(seconds)

    def at_once(self, size: int, in_hand: StreamBacklog = EMPTY_BACKLOG) -> float:
        """Whether mail may be fetched now, whatever its age: 0, or the seconds after which to ask again."""
        self._turned()
        reason = self._work.full(in_hand) or ""
        if not reason and not self._budget.ask(size):
            reason = "IMAP_BYTES_PER_DAY is used up"
        self.hold(reason)
        return LOOK_SECONDS if reason else 0.0

    def for_history(self, size: int, in_hand: StreamBacklog) -> float:
        """Whether older mail may be fetched now: 0, or the seconds after which to ask again."""
        self._turned()
        if self._work.relieved() or self._work.full(in_hand, HISTORY_DEPTH):
            return HISTORY_SECONDS
        return 0.0 if self._budget.ask(size, HISTORY_SHARE) else BUDGET_SECONDS

    def for_labels(self, size: int) -> float:
        """Likewise for labels, which do not go through the stream."""
        self._turned()
        return 0.0 if not self._work.relieved() and self._budget.ask(size, HISTORY_SHARE) else BUDGET_SECONDS

    def hold(self, reason: str) -> None:
        """Tell why nothing is fetched, or that it is again, where that is news."""
        if reason != self._held:
            self._held = reason
            self._observe(FetchPaused(self._account, reason))

    def keep_alive(self, connection: ImapMailbox) -> None:
        """Show the server now and then that we are there."""
        if time.monotonic() - self._spoke > KEEPALIVE_SECONDS:
            connection.noop()
            self._spoke = time.monotonic()

    def settle(self, connection: ImapMailbox, *, last: bool = False) -> None:
        """Correct the budget by what came; where Redis is away, what was asked for has to do."""
        with suppress(TransientError):
            self._budget.settle(connection.received_bytes, last=last)
