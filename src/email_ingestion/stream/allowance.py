"""What an account has downloaded in the last day: counted in Redis before it comes, so that no crash forgets it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from email_ingestion.stream.connection import RedisLink


@dataclass(frozen=True, slots=True)
class Spending:
    """Whether some bytes were granted, and how many were used in the last day."""

    granted: bool
    today: int


class Allowance:
    """The bytes of one account; safe for several processes. Its methods raise like `RedisLink.call`."""

    def __init__(self, link: RedisLink, account: str, clock: Callable[[], float] = time.time) -> None:
        self._link = link
        self._key = link.keys_for(account).budget(account)
        self._script = link.script("spend")
        self._clock = clock

    def ask(self, size: int, limit: int) -> Spending:
        """Use `size` bytes unless `limit` is reached already; one request may go beyond it, or none would ever fit."""
        return self._spend(size, limit)

    def correct(self, size: int) -> Spending:
        """Use bytes that came unasked for, or give back (negative) what was asked for and did not come."""
        return self._spend(size, 0)

    def _spend(self, size: int, limit: int) -> Spending:
        args = [int(self._clock() // 3600), size, limit]
        granted, today = self._link.call(lambda: self._script(keys=[self._key], args=args))
        return Spending(bool(granted), int(today))
