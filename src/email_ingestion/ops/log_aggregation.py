"""Keeps the log short: messages are added up and logged once per second, and failures that repeat are left out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any

from email_ingestion.events import Delivered, Event, LoopTick, Published, Stopped, Stopping

PUBLISHED = "emails_published"
DELIVERED = "emails_delivered"
FLUSH_SECONDS = 1.0
MAX_TAGS = 20  # names of tags in one line
URGENT = 5  # the priority above which messages are read before others, and are named in the line
MAX_LISTED = 10  # up to so many messages are named in the sum, so that a quiet mailbox can be followed at INFO

AggregatedLine = tuple[str, dict[str, Any]]


class LogAggregator:
    """Collects Published and Delivered; returns their sums when a loop ticks, at most once per `FLUSH_SECONDS`.

    Thread-safe; `clock` in seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._flushed_at = self._since = float("-inf")
        self._slowest: float | None = None  # of live mail
        self._longest = (-1.0, "")  # seconds and message
        self._priority = 0
        self._clear()

    def add(self, event: Event) -> list[AggregatedLine]:
        """Add `event`; return the lines to log now, mostly none."""
        if not isinstance(event, Published | Delivered | LoopTick | Stopping | Stopped):
            return []
        with self._lock:
            self._count(event)
            return self._flush() if self._due(event) else []

    def _count(self, event: Event) -> None:
        if isinstance(event, Published | Delivered) and not (self._published or self._delivered):
            self._since = self._clock()
        if isinstance(event, Published):
            self._published += event.count
            self._bytes += event.size
            self._published_ids += event.email_ids[: MAX_LISTED + 1 - len(self._published_ids)]
        elif isinstance(event, Delivered):
            self._delivered += 1
            self._duplicates += event.duplicate
            if not event.history:
                self._slowest = max(self._slowest or 0.0, event.end_to_end)
            if len(self._delivered_ids) <= MAX_LISTED:
                self._delivered_ids.append(event.email_id)
            if event.duration > self._longest[0]:
                self._longest = (event.duration, event.email_id)
            self._priority = max(self._priority, event.priority)
            if event.priority > URGENT and len(self._urgent_ids) < MAX_LISTED:
                self._urgent_ids.append(event.email_id)
            if event.tags:
                self._tags.update(event.tags)

    def _due(self, event: Event) -> bool:
        if isinstance(event, Stopping | Stopped):
            return True
        # In the middle of a batch only a sum that has waited is logged, so that a small batch stays one line.
        start = self._flushed_at if isinstance(event, LoopTick) else max(self._flushed_at, self._since)
        return self._clock() - start >= FLUSH_SECONDS

    def _flush(self) -> list[AggregatedLine]:
        sums: list[AggregatedLine] = []
        if self._published:
            sums.append((PUBLISHED, {"count": self._published, "bytes": self._bytes, **_listed(self._published_ids)}))
        if self._delivered:
            counts = {"count": self._delivered, "duplicates": self._duplicates}
            slowest = {} if self._slowest is None else {"slowest_end_to_end_s": round(self._slowest, 3)}
            sums.append((DELIVERED, {**counts, **slowest, **self._details(), **_listed(self._delivered_ids)}))
        if sums:
            self._flushed_at = self._clock()
            self._clear()
        return sums

    def _details(self) -> dict[str, Any]:
        """Return the highest priority, the tags, and which message took longest, for `jq` on the log."""
        seconds, slowest_id = self._longest
        details = {"priority": self._priority, "duration_ms": round(1000 * seconds, 3), "slowest_email_id": slowest_id}
        urgent = {"urgent_email_ids": self._urgent_ids} if self._urgent_ids else {}
        return {**details, **urgent, "tags": sorted(self._tags)[:MAX_TAGS]}

    def _clear(self) -> None:
        self._longest = (-1.0, "")
        self._priority = 0
        self._urgent_ids: list[str] = []
        self._tags: set[str] = set()
        self._published = self._bytes = self._delivered = self._duplicates = 0
        self._slowest = None
        self._published_ids: list[str] = []
        self._delivered_ids: list[str] = []


def _listed(ids: list[str]) -> dict[str, list[str]]:
    return {"email_ids": ids} if len(ids) <= MAX_LISTED else {}


class RepeatLimiter:
    """Limits equal failures to one line in `seconds`; thread-safe."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._logged: dict[Hashable, tuple[float, int]] = {}  # when it was logged last, how many were left out since

    def allow(self, key: Hashable) -> int | None:
        """Return how many lines of this key were left out since the last one; None to leave out this one too."""
        with self._lock:
            now = self._clock()
            last, left_out = self._logged.get(key, (None, 0))
            if last is not None and now - last < self._seconds:
                self._logged[key] = (last, left_out + 1)
                return None
            self._logged[key] = (now, 0)
            return left_out
