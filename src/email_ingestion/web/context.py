"""What the requests of the web process share: settings, ledger, parser and limits. Requests find it by `context_of`."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi import Request

from email_ingestion.settings import Settings
from email_ingestion.web.feed_watch import FeedWatch
from email_ingestion.web.ledger_access import LedgerAccess
from email_ingestion.web.mail_records import MailRecords

BURST_SECONDS = 10.0  # of the allowed rate at once
REMEMBERED = 10_000  # callers
GUESSES_PER_MINUTE = 60  # of an address: tokens that were not valid the last time, or never seen


class RateLimiter:
    """Lets each caller ask `per_minute` times a minute, a few seconds' worth of them at once."""

    def __init__(
        self, per_minute: int, clock: Callable[[], float] = time.monotonic, burst_seconds: float = BURST_SECONDS
    ) -> None:
        self._rate = per_minute / 60.0
        self._burst = max(1.0, self._rate * burst_seconds)
        self._clock = clock
        self._lock = threading.Lock()
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # by caller: how many may come, as of when

    def wait(self, caller: str) -> float:
        """Take one request; return 0, or after how many seconds it may come."""
        now = self._clock()
        with self._lock:
            left, since = self._left.pop(caller, (self._burst, now))
            left = min(self._burst, left + (now - since) * self._rate)
            taken = left >= 1.0
            self._left[caller] = (left - 1.0 if taken else left, now)
            if len(self._left) > REMEMBERED:
                self._left.popitem(last=False)
        return 0.0 if taken else (1.0 - left) / self._rate


class ProvenTokens:
    """Remembers, by their hashes, the tokens that were valid when they were last looked up; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hashes: OrderedDict[bytes, None] = OrderedDict()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._hashes

    def note(self, digest: bytes, *, valid: bool) -> None:
        """Remember what was found of a token."""
        with self._lock:
            self._hashes.pop(digest, None)
            if valid:
                self._hashes[digest] = None
            if len(self._hashes) > REMEMBERED:
                self._hashes.popitem(last=False)


@dataclass(frozen=True, slots=True)
class WebContext:
    """The parts that one web process is built from."""

    settings: Settings
    access: LedgerAccess
    records: MailRecords
    limiter: RateLimiter
    feed: FeedWatch = field(default_factory=FeedWatch)
    guesses: RateLimiter = field(default_factory=lambda: RateLimiter(GUESSES_PER_MINUTE, burst_seconds=60.0))
    proven: ProvenTokens = field(default_factory=ProvenTokens)

    @classmethod
    def from_settings(cls, settings: Settings) -> WebContext:
        """Make the parts; nothing is contacted."""
        access = LedgerAccess(settings)
        records = MailRecords(access, settings.worker_handle_timeout_seconds)
        return cls(settings, access, records, RateLimiter(settings.web_requests_per_minute))

    def close(self) -> None:
        """Close connections, and end the parser's process."""
        self.records.close()
        self.access.close()


def context_of(request: Request) -> WebContext:
    """Return the context of the application that answers a request."""
    found = request.app.state.context
    assert isinstance(found, WebContext)  # noqa: S101 - made by web_app
    return found
