"""What is known of an account's mail server, which no restart may forget: daily download, lockout, wrong sizes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from email_ingestion.stream.redis_link import RedisLink
from email_ingestion.stream.stored_values import number

LONGEST_SECONDS = 24 * 3600.0
CLOCK_SECONDS = 600.0  # by which the clocks of two machines may differ
MISCOUNTS_IN_A_ROW = 5  # after which a server's sizes are not asked about
MISCOUNT_SECONDS = 24 * 3600  # for which they are not


@dataclass(frozen=True, slots=True)
class QuotaUse:
    """Whether some bytes were granted, and how many were used in the last day."""

    granted: bool
    today: int


class DownloadQuota:
    """The bytes an account has downloaded in the last day, counted before they come.

    Safe for several processes. Its methods raise like `RedisLink.call`.
    """

    def __init__(self, link: RedisLink, account: str, clock: Callable[[], float] = time.time) -> None:
        self._link = link
        self._key = link.keys_for(account).budget(account)
        self._script = link.script("reserve_quota")
        self._clock = clock

    def reserve(self, size: int, limit: int) -> QuotaUse:
        """Use `size` bytes unless `limit` is reached; one request may exceed it, or none would ever fit."""
        return self._use(size, limit)

    def adjust(self, size: int) -> QuotaUse:
        """Count bytes that came without a reservation, or return (negative) reserved ones that did not come."""
        return self._use(size, 0)

    def _use(self, size: int, limit: int) -> QuotaUse:
        args = [int(self._clock() // 3600), size, limit]
        granted, today = self._link.call(lambda: self._script(keys=[self._key], args=args))
        return QuotaUse(bool(granted), int(today))


class Lockout:
    """For how long the mail server has locked an account out, so that a restart does not knock again.

    Its methods raise like `RedisLink.call`.
    """

    def __init__(self, link: RedisLink, account: str, clock: Callable[[], float] = time.time) -> None:
        self._link = link
        self._key = link.keys_for(account).lockout(account)
        self._script = link.script("start_lockout")
        self._clock = clock

    def remaining(self) -> float:
        """Return the seconds until the account may be tried again; 0 when it may now."""
        until = self._link.call(lambda: self._link.client.hget(self._key, "until"))
        return _left(until, self._clock(), LONGEST_SECONDS)

    def start(self, minimum: float) -> float:
        """Stay away for `minimum` seconds, or twice as long as the last time; return the seconds.

        When the account is locked out already, return what is left of it.
        """
        args = [self._clock(), minimum, LONGEST_SECONDS]
        until = self._link.call(lambda: self._script(keys=[self._key], args=args))
        return _left(until, self._clock(), LONGEST_SECONDS)


class Miscounts:
    """How the server of an account counts bytes. Some announce another size than they send, for every message.

    Its methods raise like `RedisLink.call`.
    """

    def __init__(self, link: RedisLink, account: str, clock: Callable[[], float] = time.time) -> None:
        self._link = link
        self._key = link.keys_for(account).miscounts(account)
        self._clock = clock

    def expected(self) -> bool:
        """Whether so many miscounts were proven in a row that another one is not worth a second download."""
        until = self._link.call(lambda: self._link.client.hget(self._key, "until"))
        return _left(until, self._clock(), MISCOUNT_SECONDS) > 0

    def add(self) -> None:
        """Count one more proven miscount."""

        def write() -> None:
            row = int(self._link.client.hincrby(self._key, "row", 1))
            self._link.client.expire(self._key, 2 * MISCOUNT_SECONDS)
            if row >= MISCOUNTS_IN_A_ROW:
                self._link.client.hset(self._key, mapping={"row": 0, "until": self._clock() + MISCOUNT_SECONDS})

        self._link.call(write)

    def end_row(self) -> None:
        """Begin to count anew: a message had its size."""
        self._link.call(lambda: self._link.client.hdel(self._key, "row"))


def _left(until: bytes | str | None, now: float, longest: float) -> float:
    """Return the seconds until a time that was written; 0 when it is over, or further away than anybody writes."""
    left = (number(until) or 0.0) - now
    return left if 0 < left <= longest + CLOCK_SECONDS else 0.0
