"""A thread that sends a message of nobody's through stream, worker and database now and then, and waits for its end."""

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
LOOK_SECONDS = 0.25
LETTER = b"Subject: canary\r\nMessage-ID: <canary@rehearsal.invalid>\r\n\r\nNobody's.\r\n"


class Canary:
    """`start` it, `close` it; with `seconds` None it does nothing."""

    def __init__(self, seconds: float | None, link: RedisLink, paused: Callable[[], object], observe: Observe) -> None:
        self._rehearsals = SyntheticMessages(link)
        self._paused = paused
        self._observe = observe
        self._thread = PeriodicThread(LOOP, seconds, self._send, immediate=False) if seconds else None

    def start(self) -> None:
        """Begin to send."""
        if self._thread:
            self._thread.start()

    def close(self) -> None:
        """Send no more; one that is on its way leaves nothing behind."""
        if self._thread:
            self._thread.close()

    def _send(self) -> None:
        if self._paused():
            return
        try:
            receipt = self._wait_for_receipt()
        except TransientError:  # Redis is away, which other loops report
            receipt = None
        except Exception as error:  # noqa: BLE001 - the canary must not die of an error it meets
            self._observe(LoopFailed(LOOP, error))
            receipt = None
        if not self._is_closed():
            self._observe(CanarySeen(receipt.delivered, receipt.took) if receipt else CanarySeen(None, None))

    def _is_closed(self, timeout: float = 0.0) -> bool:
        return self._thread is None or self._thread.is_closed(timeout)

    def _wait_for_receipt(self) -> Receipt | None:
        run = f"canary-{secrets.token_hex(6)}"
        self._rehearsals.append([synthetic_message(run, 1, LETTER)])
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline and not self._is_closed(LOOK_SECONDS):
            for receipt in self._rehearsals.pop_receipts(run):
                return receipt
        return None
