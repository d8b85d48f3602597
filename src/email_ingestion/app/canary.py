"""A thread that sends a message of nobody's through stream, worker and database now and then, and waits for its end."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable

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
        self._seconds = seconds
        self._rehearsals = SyntheticMessages(link)
        self._paused = paused
        self._observe = observe
        self._closed = threading.Event()

    def start(self) -> None:
        """Begin to send."""
        if self._seconds:
            threading.Thread(target=self._send, args=(self._seconds,), name=LOOP, daemon=True).start()

    def close(self) -> None:
        """Send no more; one that is on its way leaves nothing behind."""
        self._closed.set()

    def _send(self, seconds: float) -> None:
        while not self._closed.wait(seconds):
            if self._paused():
                continue
            try:
                receipt = self._fly()
            except TransientError:  # Redis is away, which is told elsewhere
                receipt = None
            except Exception as error:  # noqa: BLE001 - who watches must not die of what it sees
                self._observe(LoopFailed(LOOP, error))
                receipt = None
            if not self._closed.is_set():
                self._observe(CanarySeen(receipt.delivered, receipt.took) if receipt else CanarySeen(None, None))

    def _fly(self) -> Receipt | None:
        run = f"canary-{secrets.token_hex(6)}"
        self._rehearsals.append([synthetic_message(run, 1, LETTER)])
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline and not self._closed.wait(LOOK_SECONDS):
            for receipt in self._rehearsals.collect(run):
                return receipt
        return None
