"""Take, parse, record, complete; until told to stop.

overdue first (a suspect alone), then fresh ─▶ parse ─▶ database ─▶ complete
                                                 │         │
                         dead letter ◀── permanent, or attempts used up
                                     pending ◀── may work later: back-off
             given back, no attempt spent ◀── the database or Redis is away

What further sinks get, they get from the database: `courier`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from email_ingestion.errors import CircuitBreakerError, RedisConnectionError, TransientError
from email_ingestion.events import LoopFailed, Observe, Reclaimed, RedisFailed, Turned
from email_ingestion.retry import backoff
from email_ingestion.stream import Delivery, Queue
from email_ingestion.worker.settle import Settlement

LOOP = "consume"
OVERDUE_SECONDS = 0.5  # how often the pending list is looked through while fresh mail flows
ADOPT_SECONDS = 60.0  # how often a worker looks for entries that nobody was ever given
REST_SECONDS = 0.2  # how soon a paused worker notices that it may go on
PAUSE_SECONDS = 2.0  # Redis and the database have breakers that spare them
TRIAL_SECONDS = 0.2  # while somebody else tries whether what was away is back


class Worker:
    """The loop of one process; `run` in the main thread, `stop` from anywhere."""

    def __init__(
        self,
        queue: Queue,
        settlement: Settlement,
        *,
        batch: int,
        lease: float,
        paused: Callable[[], object],
        observe: Observe,
    ) -> None:
        self._queue = queue
        self._settlement = settlement
        self._batch = batch
        self._lease = lease
        self._paused = paused
        self.at_rest = False  # a pause has taken hold: nothing is in hand, and no read is waiting for something
        self._observe = observe
        self._stop = threading.Event()
        self._looked = -OVERDUE_SECONDS
        self._adopted = -ADOPT_SECONDS
        self._failures = 0
        self._in_flight: tuple[str, ...] = ()
        self._seen: set[str] = set()

    def stop(self) -> None:
        """Take nothing more; what is in flight is finished."""
        self._stop.set()

    def run(self) -> None:
        """Work until `stop`."""
        self._work(lambda: False)

    def drain(self) -> None:
        """Work until the stream is empty, what waits for another attempt included."""
        self._work(lambda: self._queue.depth() == 0)

    def leave(self) -> None:
        """Give back what is still held and take the consumer out of the group."""
        with suppress(TransientError):
            self._queue.release(list(self._in_flight))
            self._queue.leave()

    def _work(self, finished: Callable[[], bool]) -> None:
        beat = threading.Thread(target=self._beat, name="beat", daemon=True)
        beat.start()
        while not self._stop.is_set():
            self._observe(Turned(LOOP))
            try:
                self._turn()
                self._failures = 0
                if finished():
                    return
            except Exception as error:  # noqa: BLE001 - the boundary: whatever it is, the loop goes on and says so
                self._wait(error)

    def _turn(self) -> None:
        self.at_rest = bool(self._paused())
        if self.at_rest:
            self._stop.wait(REST_SECONDS)
            return
        if not self._settlement.ready():
            self._stop.wait(min(1.0, self._settlement.retry_after()))
            return
        batch = self._take()
        if not batch:
            return
        self._in_flight = tuple(each.id for each in batch)
        try:
            self._settlement.settle(batch)
        finally:
            self._in_flight = ()

    def _take(self) -> Sequence[Delivery]:
        now = time.monotonic()
        if now - self._adopted >= ADOPT_SECONDS:
            self._queue.adopt()
            self._adopted = now
        if now - self._looked >= OVERDUE_SECONDS:
            overdue = self._queue.overdue(self._batch)
            if overdue:  # look again at once: there may be more
                self._announce(overdue)
                return overdue
            self._looked = now
        fresh = self._queue.fresh(self._batch)
        self._seen.update(each.id for each in fresh)
        return fresh

    def _announce(self, overdue: Sequence[Delivery]) -> None:
        """Entries this life has not had before were abandoned by somebody."""
        orphans = [each.id for each in overdue if each.foreign or each.id not in self._seen]
        self._seen.update(orphans)
        if orphans:
            self._observe(Reclaimed(len(orphans)))

    def _beat(self) -> None:
        """Tell the others, three times a lease, that what is in flight is not abandoned."""
        while not self._stop.wait(self._lease / 3):
            ids = self._in_flight
            if ids:
                try:
                    self._queue.hold(ids)
                except Exception as error:  # noqa: BLE001 - without its heartbeat a worker loses what it holds
                    self._observe(LoopFailed("beat", error))

    def _wait(self, error: Exception) -> None:
        self._failures += 1
        delay = min(backoff(self._failures), PAUSE_SECONDS)
        if isinstance(error, CircuitBreakerError):  # no later than its next trial, which costs nothing to wait for
            delay = min(PAUSE_SECONDS, max(error.retry_after, TRIAL_SECONDS))
        redis = isinstance(error, (RedisConnectionError, CircuitBreakerError))
        self._observe(RedisFailed(error, delay) if redis else LoopFailed(LOOP, error))
        self._stop.wait(delay)
