"""When the audit of a mailbox (`reconcile`) is due, and its steps between two syncs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

from email_ingestion.breaker import Breaker
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.mailbox.imap_mailbox import SelectedMailbox
from email_ingestion.producer.work import Work

AGAIN_SECONDS = 60.0  # an audit that failed is begun again after this long, or at its usual time if sooner
END = object()


class Audits:
    """One after another, `every` so many seconds (infinite: never); outlives the connections."""

    def __init__(self, work: Work, every: float, imap: Breaker) -> None:
        self._work = work
        self._every = every
        self._imap = imap
        self._due = self._soonest = time.monotonic() if every < math.inf else math.inf
        self._running: Iterator[None] | None = None

    @property
    def wait(self) -> float:
        """Seconds until the next is due."""
        return self._due - time.monotonic()

    def at_once(self) -> None:
        """Something came up that only an audit finds."""
        self._due = self._soonest

    def drop(self) -> None:
        """Whatever ran has lost its connection, or failed."""
        self._running = None

    def step(self, connection: ImapMailbox, opened: SelectedMailbox, room: Callable[[], bool]) -> bool:
        """Take the next step of one that runs or is due; whether there is more of it to do."""
        if not self._running:
            if self.wait > 0:
                return False
            if self._work.relieved():
                self._postpone()
                return False
            self._running = self._work.audit(connection, opened, room).steps()
        running = self._running
        # Whatever goes wrong in the step, the audit is not begun again at once: it must not hold up the mail.
        self._postpone()
        if self._imap.run(lambda: next(running, END)) is not END:
            return True
        self._running = None
        self._due = time.monotonic() + self._every
        return False

    def _postpone(self) -> None:
        self._due = time.monotonic() + min(AGAIN_SECONDS, self._every)
