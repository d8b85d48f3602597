"""Adds up what moved, so that a busy process tells it once per second and not once per message; it logs nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from email_ingestion.events import Delivered, Event, LoopTick, Published, Stopped, Stopping

PUBLISHED = "emails_published"
DELIVERED = "emails_delivered"
EVERY_SECONDS = 1.0
FEW = 10  # up to so many messages are named in the sum, so that a quiet mailbox can be followed at INFO

Sums = tuple[str, dict[str, Any]]


class Summary:
    """Collects Published and Delivered; hands out their sums between two turns, at most once per `EVERY_SECONDS`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._told = self._since = float("-inf")
        self._slowest = 0.0
        self._clear()

    def take(self, event: Event) -> list[Sums]:
        """Note `event`; what is to be told now, mostly nothing."""
        if not isinstance(event, Published | Delivered | LoopTick | Stopping | Stopped):
            return []
        with self._lock:
            self._note(event)
            return self._tell() if self._due(event) else []

    def _note(self, event: Event) -> None:
        if isinstance(event, Published | Delivered) and not (self._published or self._delivered):
            self._since = self._clock()
        if isinstance(event, Published):
            self._published += event.count
            self._bytes += event.size
            self._published_ids += event.email_ids[: FEW + 1 - len(self._published_ids)]
        elif isinstance(event, Delivered):
            self._delivered += 1
            self._duplicates += event.duplicate
            self._slowest = max(self._slowest, event.end_to_end)
            if len(self._delivered_ids) <= FEW:
                self._delivered_ids.append(event.email_id)

    def _due(self, event: Event) -> bool:
        if isinstance(event, Stopping | Stopped):
            return True
        # In the middle of a batch only a sum that has waited is told, so that a small batch stays one line.
        start = self._told if isinstance(event, LoopTick) else max(self._told, self._since)
        return self._clock() - start >= EVERY_SECONDS

    def _tell(self) -> list[Sums]:
        sums: list[Sums] = []
        if self._published:
            sums.append((PUBLISHED, {"count": self._published, "bytes": self._bytes, **_named(self._published_ids)}))
        if self._delivered:
            counts = {"count": self._delivered, "duplicates": self._duplicates}
            slowest = {"slowest_end_to_end_s": round(self._slowest, 3)}
            sums.append((DELIVERED, {**counts, **slowest, **_named(self._delivered_ids)}))
        if sums:
            self._told = self._clock()
            self._clear()
        return sums

    def _clear(self) -> None:
        self._published = self._bytes = self._delivered = self._duplicates = 0
        self._slowest = 0.0
        self._published_ids: list[str] = []
        self._delivered_ids: list[str] = []


def _named(ids: list[str]) -> dict[str, list[str]]:
    return {"email_ids": ids} if len(ids) <= FEW else {}
