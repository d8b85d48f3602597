"""Notices that the ledger went back, and has every mailbox compared at once: its mail is back before the next hour.

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
from email_ingestion.stream.stored_values import record, whole_number

if TYPE_CHECKING:  # it loads SQLAlchemy, which waits for the first look
    from email_ingestion.ledger.store import Ledger

LOOP = "ledger"
LOOK_SECONDS = 10.0
SHOWN_SECONDS = 600.0  # for which `/ready` tells it


class LedgerWatch:
    """`start` and `close` it; `on_loss` is called when the ledger went back since anybody's last look."""

    def __init__(
        self,
        link: RedisLink,
        ledger: Callable[[], Ledger],
        on_loss: Callable[[], None],
        show: Callable[[str | None], None],
        observe: Observe,
    ) -> None:
        self._link = link
        self._ledger = ledger
        self._on_loss = on_loss
        self._show = show
        self._observe = observe
        self._losses: int | None = None  # that we know of
        self._shown_until = 0.0  # monotonic seconds
        self._thread = PeriodicThread(LOOP, LOOK_SECONDS, self._look, immediate=True, on_error=self._failed)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._thread.close(0)

    def _look(self) -> None:
        try:
            self._compare()
        except EmailIngestionError:  # the ledger or Redis is away, which others report
            return

    def _compare(self) -> None:
        now = self._ledger().mark()
        if now is None:
            return
        before, losses = self._remembered()
        went_back = before is not None and before.is_ahead_of(now)
        losses += went_back
        if before != now:
            self._remember(now, losses)
        losses += self._missed_by_workers()
        if went_back or (self._losses is not None and losses > self._losses):
            self._observe(LedgerWentBack(_describe(before or now), _describe(now)))
            if now.timeline:  # an SQLite file also goes back when its newest messages are erased
                self._show("it went back and may have lost messages: every mailbox is compared with it")
                self._shown_until = time.monotonic() + SHOWN_SECONDS
            self._on_loss()
        elif self._shown_until and time.monotonic() > self._shown_until:
            self._shown_until = 0.0
            self._show(None)
        self._losses = losses

    def _remembered(self) -> tuple[LedgerMark | None, int]:
        """Return the mark of the last look of any producer, and how often it went back until then."""
        found = self._link.call(lambda: self._link.client.get(self._link.keys.ledger))
        fields = record(found, {"system": str, "timeline": str, "position": int, "losses": int})
        if fields is None:  # there is none yet, or it is of another release
            return None, 0
        return LedgerMark(fields["system"], fields["timeline"], fields["position"]), fields["losses"]

    def _missed_by_workers(self) -> int:
        """Return how often a worker missed what it had recorded: that shows nowhere once others have recorded more."""
        return whole_number(self._link.call(lambda: self._link.client.get(self._link.keys.ledger_losses))) or 0

    def _remember(self, mark: LedgerMark, losses: int) -> None:
        value = json.dumps({**asdict(mark), "losses": losses})
        self._link.call(lambda: self._link.client.set(self._link.keys.ledger, value))

    def _failed(self, error: Exception) -> None:
        self._observe(LoopFailed(LOOP, error, LOOK_SECONDS))


def _describe(mark: LedgerMark) -> str:
    return " ".join(filter(None, (mark.system, mark.timeline, str(mark.position))))
