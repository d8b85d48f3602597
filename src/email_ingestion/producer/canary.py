"""The canary: from time to time a synthetic message through stream, worker and database, and its receipt."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from email_ingestion.background import PeriodicThread
from email_ingestion.errors import TransientError
from email_ingestion.events import CanarySeen, LoopFailed, Observe
from email_ingestion.stream import Receipt, RedisLink, SyntheticMessages
from email_ingestion.stream.synthetic import synthetic_message

LOOP = "canary"
WAIT_SECONDS = 60.0
POLL_SECONDS = 0.25
MESSAGE = b"Subject: canary\r\nMessage-ID: <canary@rehearsal.invalid>\r\n\r\nNobody's.\r\n"


class Canary(PeriodicThread):
    """Sends a message every `seconds` unless the producer is paused. One under way at the end leaves nothing behind."""

    def __init__(self, seconds: float, link: RedisLink, is_paused: Callable[[], object], observe: Observe) -> None:
        super().__init__(LOOP, seconds, self._send, immediate=False, on_error=self._failed)
        self._synthetic = SyntheticMessages(link)
        self._is_paused = is_paused
        self._observe = observe
        self._retry_seconds = seconds

    def _send(self) -> None:
        if self._is_paused():
            return
        try:
            receipt = self._await_receipt()
        except TransientError:  # Redis is away, which is announced elsewhere
            receipt = None
        if not self.is_closed():
            self._observe(CanarySeen(receipt.delivered, receipt.took) if receipt else CanarySeen(None, None))

    def _failed(self, error: Exception) -> None:
        self._observe(LoopFailed(LOOP, error, self._retry_seconds))
        if not self.is_closed():
            self._observe(CanarySeen(None, None))

    def _await_receipt(self) -> Receipt | None:
        run = f"canary-{secrets.token_hex(6)}"
        self._synthetic.append([synthetic_message(run, 1, MESSAGE)])
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline and not self.is_closed(POLL_SECONDS):
            for receipt in self._synthetic.pop_receipts(run):
                return receipt
        return None
