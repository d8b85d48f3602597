"""What Redis' own count and clock do not tell about the deliveries of an entry.

Both are what `claim_due` goes by: the count of deliveries, of which some were no attempts, and the idle time, which
stands still when the clock of Redis goes back.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from email_ingestion.errors import CircuitBreakerError, TransientError

REMEMBERED = 20_000  # pending entries whose attempts are known better than Redis knows them
CLOCK_TOLERANCE = 1.0  # seconds that Redis' clock may go back; an entry merely waits so much longer


class EntryAttempts:
    """Knows how often entries were tried where Redis' count of deliveries is too high.

    Redis counts every delivery: also one whose answer was lost, and one that could not be taken back because Redis was
    away just then or refused it. This process has survived all of them, so they were no attempts.
    """

    def __init__(self) -> None:
        self._attempts: dict[str, int] = {}  # of entries that this process had, without deliveries that were none
        self._lost_answers = 0  # of this life: each may have been a delivery of any entry under our name

    def delivered(self, entry_id: str, count: int, *, foreign: bool) -> int:
        """Return the number of the attempt that this delivery is; `foreign`: another consumer had the entry."""
        known = self._attempts.pop(entry_id, None)
        if known is not None and not foreign:
            attempt = min(count, known + 1)
        else:
            attempt = count if foreign or count == 1 else max(1, count - self._lost_answers)
        self._attempts[entry_id] = attempt
        if len(self._attempts) > REMEMBERED:
            del self._attempts[next(iter(self._attempts))]
        return attempt

    def given_back(self, entry_ids: Iterable[str]) -> None:
        """Take the last attempt of entries back: they were not touched, or are not at fault."""
        for entry_id in entry_ids:
            if entry_id in self._attempts:
                self._attempts[entry_id] = max(0, self._attempts[entry_id] - 1)

    def forget(self, entry_ids: Iterable[object]) -> None:
        """Forget entries that are settled, or another consumer's."""
        for entry_id in entry_ids:
            self._attempts.pop(str(entry_id), None)

    @contextmanager
    def counting_lost_answers(self) -> Iterator[None]:
        """Count a call that may have delivered an entry although it failed."""
        try:
            yield
        except CircuitBreakerError:  # it was not made
            raise
        except TransientError:
            self._lost_answers += 1
            raise


class RedisClock:
    """Notices that the wall clock of Redis went back, which makes the idle time of pending entries stand still."""

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None

    def went_back(self, redis_now: float, now: float | None = None) -> bool:
        """Whether it did since the last call, or may have before the first; `redis_now` is Redis' TIME in seconds."""
        now = time.monotonic() if now is None else now
        last, self._last = self._last, (redis_now, now)
        return last is None or redis_now < last[0] + (now - last[1]) - CLOCK_TOLERANCE
