"""What an account has downloaded in the last day: counted in Redis before it comes, so that no crash forgets it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from email_ingestion.stream.connection import RedisLink


@dataclass(frozen=True, slots=True)
class QuotaUse:
    """Whether some bytes were granted, and how many were used in the last day."""

    granted: bool
    today: int


class DownloadQuota:
    """The bytes of one account; safe for several processes. Its methods raise like `RedisLink.call`."""

    def __init__(self, link: RedisLink, account: str, clock: Callable[[], float] = time.time) -> None:
        self._link = link
        self._key = link.keys_for(account).budget(account)
        self._script = link.script("spend")
        self._clock = clock

    def reserve(self, size: int, limit: int) -> QuotaUse:
        """Use `size` bytes unless `limit` is reached already; one request may go beyond it, or none would ever fit."""
        return self._spend(size, limit)

    def adjust(self, size: int) -> QuotaUse:
        """Use bytes that came unasked for, or give back (negative) what was asked for and did not come."""
        return self._spend(size, 0)

    def _spend(self, size: int, limit: int) -> QuotaUse:
        args = [int(self._clock() // 3600), size, limit]
        granted, today = self._link.call(lambda: self._script(keys=[self._key], args=args))
        return QuotaUse(bool(granted), int(today))


LONGEST_SECONDS = 24 * 3600.0


class Lockout:
    """The lockout of one account. Its methods raise like `RedisLink.call`."""

    def __init__(self, link: RedisLink, account: str, clock: Callable[[], float] = time.time) -> None:
        self._link = link
        self._key = link.keys_for(account).lockout(account)
        self._script = link.script("lock_out")
        self._clock = clock

    def remaining(self) -> float:
        """Seconds until the account may be tried again; 0 when it may now."""
        until = self._link.call(lambda: self._link.client.hget(self._key, "until"))
        return max(0.0, float(until) - self._clock()) if until else 0.0

    def start(self, least: float) -> float:
        """The server shut the account out: stay away `least` seconds, or twice as long as the last time.

        Returns the seconds to stay away; when it is known already, what is left of them.
        """
        args = [self._clock(), least, LONGEST_SECONDS]
        until = float(self._link.call(lambda: self._script(keys=[self._key], args=args)))
        return max(0.0, until - self._clock())
