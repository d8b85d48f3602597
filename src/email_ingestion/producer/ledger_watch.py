"""Notices that ledger or queue lost mail, and has every mailbox compared at once: it is back before the next hour.

The mark of the ledger is remembered in Redis, so that a producer that takes over, or starts again, notices it as well.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from email_ingestion.background import PeriodicThread
from email_ingestion.errors import EmailIngestionError
from email_ingestion.events import LedgerWentBack, LoopFailed, Observe, QueuedMailVanished
from email_ingestion.ledger.mark import LedgerMark
from email_ingestion.stream import RedisLink
from email_ingestion.stream.stored_values import record, whole_number

if TYPE_CHECKING:  # it loads SQLAlchemy, which waits for the first look
    from email_ingestion.ledger.store import Ledger

LOOP = "ledger"
LOOK_SECONDS = 10.0
SHOWN_SECONDS = 600.0  # for which `/ready` tells it


class LedgerWatch:
    """`start` and `close` it; `on_loss` is called when anybody lost mail since the last look."""

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
        self._settle_volume = link.script("settle_volume")
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
        vanished = self._vanished()
        if vanished:
            self._observe(QueuedMailVanished(vanished))
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

    def _vanished(self) -> int:
        """Return the bytes of mail that left the queue though no worker took it; every producer learns that it did."""
        found = 0
        for keys in self._link.partitions:
            settle = partial(self._settle_volume, keys=[keys.stream, keys.volume])
            if vanished := int(self._link.call(partial(settle, args=[0]))):
                found += vanished
                self._link.call(lambda: self._link.client.incr(self._link.keys.ledger_losses))
                self._losses = None if self._losses is None else self._losses + 1  # this one compares at once
            self._link.call(partial(settle, args=[1]))
        return found

    def _missed_by_others(self) -> int:
        """Return how often a worker missed what it had recorded, or a producer what it had queued.

        Neither shows anywhere else, once others have recorded more or have begun to count anew.
        """
        return whole_number(self._link.call(lambda: self._link.client.get(self._link.keys.ledger_losses))) or 0

    def _remember(self, mark: LedgerMark, losses: int) -> None:
        value = json.dumps({**asdict(mark), "losses": losses})
        self._link.call(lambda: self._link.client.set(self._link.keys.ledger, value))

    def _failed(self, error: Exception) -> None:
        self._observe(LoopFailed(LOOP, error, LOOK_SECONDS))


def _describe(mark: LedgerMark) -> str:
    return " ".join(filter(None, (mark.system, mark.timeline, str(mark.position))))
