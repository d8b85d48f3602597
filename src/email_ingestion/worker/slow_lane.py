"""The slow lane: messages that take too long to parse are parsed here, one at a time, beside the flow of mail.

Nothing is decided here: whoever put a message in settles it when it is parsed, as if it had come in a batch of its own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from email_ingestion.background import BackgroundThread
from email_ingestion.errors import ThreadUnavailable
from email_ingestion.parsing.isolated import IsolatedParser
from email_ingestion.records import RawMessage
from email_ingestion.stream import Delivery

BUDGET_SECONDS = 0.5  # of parsing, after which a message leaves the flow: five of them hold it up for 2.5 s
MAX_WAITING = 20  # messages
MAX_WAITING_BYTES = 64 * 1024 * 1024

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SlowMessage(Generic[T]):
    """A message that is being parsed here, and what comes of it."""

    delivery: Delivery
    message: RawMessage
    parsed: Future[T]
    started: float  # when its turn came, by the monotonic clock


class SlowLane(Generic[T]):
    """One suspect at a time, the others behind it. For one thread; `entry_ids` and `interrupt` are for any."""

    def __init__(self, parser: IsolatedParser, parse: Callable[[RawMessage, IsolatedParser], T]) -> None:
        self._parser = parser
        self._parse = parse
        self._thread = BackgroundThread("slow lane")
        self._waiting: deque[tuple[Delivery, RawMessage]] = deque()
        self._current: SlowMessage[T] | None = None
        self.entry_ids: frozenset[str] = frozenset()

    def add(self, delivery: Delivery, message: RawMessage) -> bool:
        """Take a message; False when too many wait already."""
        waiting = sum(each.message.envelope.size for each, _ in self._waiting if each.message)
        if len(self._waiting) >= MAX_WAITING or waiting > MAX_WAITING_BYTES:
            return False
        self._waiting.append((delivery, message))
        self._note()
        self._start_next()
        return True

    def take_parsed(self) -> SlowMessage[T] | None:
        """Return the message that is parsed, which leaves the lane; None while there is none."""
        self._start_next()
        found = self._current
        if found is None or not found.parsed.done():
            return None
        self._current = None
        self._start_next()
        self._note()
        if self._current is None:
            self._parser.close()  # 50 MB that are seldom needed
        return found

    def leave(self) -> list[Delivery]:
        """Empty the lane, without waiting for the message that is parsed; return what was in it."""
        left = [delivery for delivery, _ in self._waiting]
        self._waiting.clear()
        if self._current:
            left.insert(0, self._current.delivery)
            self._current = None
            self._parser.interrupt()
        self._note()
        return left

    def interrupt(self, email_id: str) -> bool:
        """End the parsing of this message if it is the one; return whether it is in the lane."""
        current = self._current
        if current and current.delivery.email_id == email_id:
            self._parser.interrupt()
            return True
        return any(delivery.email_id == email_id for delivery, _ in tuple(self._waiting))

    def _start_next(self) -> None:
        if self._current is None and self._waiting:
            delivery, message = self._waiting[0]
            with suppress(ThreadUnavailable):  # no thread can be started now: it is tried again
                parsed = self._thread.submit(lambda: self._parse(message, self._parser))
                self._current = SlowMessage(delivery, message, parsed, time.monotonic())
                self._waiting.popleft()

    def _note(self) -> None:
        current = [self._current.delivery.id] if self._current else []
        self.entry_ids = frozenset([*current, *(delivery.id for delivery, _ in self._waiting)])
