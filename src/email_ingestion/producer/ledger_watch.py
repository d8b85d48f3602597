"""Notices that ledger or queue lost mail, and has every mailbox compared at once: it is back before the next hour.

The mark of the ledger is remembered in Redis, so that a producer that takes over, or starts again, notices it as well.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from email_ingestion.background import PeriodicThread
from email_ingestion.errors import EmailIngestionError
from email_ingestion.events import LedgerWentBack, LoopFailed, Observe
from email_ingestion.ledger.mark import LedgerMark
from email_ingestion.stream import RedisLink
from email_ingestion.stream.queue_watch import QueueWatch
from email_ingestion.stream.stored_values import record, whole_number

if TYPE_CHECKING:  # it loads SQLAlchemy, which waits for the first look
    from email_ingestion.ledger.store import Ledger

LOOP = "ledger"
LOOK_SECONDS = 10.0
SHOWN_SECONDS = 600.0  # for which `/ready` tells it
QUEUE_SHOWN_SECONDS = 30.0  # and that the queue lost mail, which is back by then, or when all is compared
LONGEST_COMPARISON = 300.0  # for which it is shown beyond that; a process that stands by compares nothing


class LedgerWatch:
    """`start` and `close` it; `on_loss` is called when anybody lost mail since the last look."""

    def __init__(
        self,
        link: RedisLink,
        ledger: Callable[[], Ledger],
        on_loss: Callable[[], None],
        show: Callable[[str, str | None], None],
        observe: Observe,
        *,
        is_comparing: Callable[[], bool] = lambda: False,
    ) -> None:
        """`show` gets a word for what is concerned, and what `/ready` shall say of it.

        `is_comparing` tells whether what `on_loss` asked for is still going on.
        """
        self._link = link
        self._ledger = ledger
        self._on_loss = on_loss
        self._show = show
        self._observe = observe
        self._is_comparing = is_comparing
        self._losses: int | None = None  # that we know of
        self._shown_until: dict[str, float] = {}  # monotonic seconds
        self._queue = QueueWatch(link, observe)
        self._thread = PeriodicThread(LOOP, LOOK_SECONDS, self._look, immediate=True, on_error=self._failed)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._thread.close(0)

    def _look(self) -> None:
        self._tell_no_more()
        try:
            self._compare()
        except EmailIngestionError:  # the ledger or Redis is away, which others report
            return

    def _compare(self) -> None:
        if self._queue.lost_mail():
            lost = "mail left it and no worker took it (queued_mail_vanished in the log): every mailbox is compared"
            self._tell("queue", lost, QUEUE_SHOWN_SECONDS)
            self._on_loss()
        now = self._ledger().mark()
        if now is None:
            return
        before, losses = self._remembered()
        went_back = before is not None and before.is_ahead_of(now)
        losses += went_back
        if before != now:
            self._remember(now, losses)
        losses += self._missed_by_others()
        if went_back or (self._losses is not None and losses > self._losses):
            self._observe(LedgerWentBack(_describe(before or now), _describe(now)))
            if now.timeline:  # an SQLite file also goes back when its newest messages are erased
                lost = "it went back and may have lost messages: every mailbox is compared with it"
                self._tell("ledger", lost, SHOWN_SECONDS)
            self._on_loss()
        self._losses = losses

    def _tell(self, what: str, lost: str, seconds: float) -> None:
        self._show(what, lost)
        self._shown_until[what] = time.monotonic() + seconds

    def _tell_no_more(self) -> None:
        now = time.monotonic() - (LONGEST_COMPARISON if self._is_comparing() else 0.0)
        for what in [what for what, until in self._shown_until.items() if now > until]:
            del self._shown_until[what]
            self._show(what, None)

    def _remembered(self) -> tuple[LedgerMark | None, int]:
        """Return the mark of the last look of any producer, and how often it went back until then."""
        found = self._link.call(lambda: self._link.client.get(self._link.keys.ledger))
        fields = record(found, {"system": str, "timeline": str, "position": int, "losses": int})
        if fields is None:  # there is none yet, or it is of another release
            return None, 0
        return LedgerMark(fields["system"], fields["timeline"], fields["position"]), fields["losses"]

    def _missed_by_others(self) -> int:
        """Return how often a worker missed what it had recorded: nothing else shows it once others recorded more."""
        return whole_number(self._link.call(lambda: self._link.client.get(self._link.keys.ledger_losses))) or 0

    def _remember(self, mark: LedgerMark, losses: int) -> None:
        value = json.dumps({**asdict(mark), "losses": losses})
        self._link.call(lambda: self._link.client.set(self._link.keys.ledger, value))

    def _failed(self, error: Exception) -> None:
        self._observe(LoopFailed(LOOP, error, LOOK_SECONDS))


def _describe(mark: LedgerMark) -> str:
    return " ".join(filter(None, (mark.system, mark.timeline, str(mark.position))))
