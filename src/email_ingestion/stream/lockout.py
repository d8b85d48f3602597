"""For how long a mail server has shut an account out: kept in Redis, so that a restart does not knock again."""

from __future__ import annotations

import time
from collections.abc import Callable

from email_ingestion.stream.connection import RedisLink

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

    def begin(self, least: float) -> float:
        """The server shut the account out: stay away `least` seconds, or twice as long as the last time.

        Returns the seconds to stay away; when it is known already, what is left of them.
        """
        args = [self._clock(), least, LONGEST_SECONDS]
        until = float(self._link.call(lambda: self._script(keys=[self._key], args=args)))
        return max(0.0, until - self._clock())
