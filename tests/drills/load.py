"""Mail that keeps arriving while a drill goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count

from email_ingestion.records import email_id
from gmail_sandbox import RunningSandbox

PATIENCE = 60.0


@dataclass
class Load:
    """Delivers mail to the sandbox at an even pace, and knows what it delivered."""

    sandbox: RunningSandbox
    pause: float = 0.2  # seconds between two messages
    headers: str = ""  # of the letters from now on, each with its line end
    delivered: dict[str, str] = field(default_factory=dict)  # SHA-256 by identity
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _busy: threading.Lock = field(default_factory=threading.Lock)

    def deliver(self, number: int = 1) -> None:
        for _ in range(number):
            with self._busy:
                n = next(self._numbers)
                text = f"From: Ada <ada@example.com>\r\nSubject: letter {n}\r\nMessage-ID: <{n}@example.com>\r\n"
                raw = f"{text}{self.headers}\r\nThis is letter {n}.\r\n".encode()
                message = self.sandbox.deliver(raw).message
                self.delivered[email_id("default", message.msgid, "")] = sha256(raw).hexdigest()

    def start(self) -> None:
        self._over.clear()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        if self._thread:
            self._thread.join(PATIENCE)
            self._thread = None

    def _run(self) -> None:
        while not self._over.wait(self.pause):
            self.deliver()
