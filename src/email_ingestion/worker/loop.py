"""Take, parse, record, complete; until told to stop. While one batch is recorded, the next one is parsed.

overdue first (a suspect alone), then urgent, then fresh ─▶ parse ─▶ database ─▶ complete
                                                              │         │
                                      dead letter ◀── permanent, or attempts used up
                                                  pending ◀── may work later: back-off
                          given back, no attempt spent ◀── the database or Redis is away

What has a priority below the least one that is to be taken waits in the stream. What further sinks get,
they get from the database: `courier`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from email_ingestion.backoff import backoff
from email_ingestion.errors import CircuitBreakerError, RedisConnectionError, TransientError
from email_ingestion.events import LoopFailed, LoopTick, Observe, Reclaimed, RedisFailed
from email_ingestion.records import NORMAL_PRIORITY
from email_ingestion.stream import Consumer, Delivery
from email_ingestion.worker.processor import BatchProcessor, InProgress

LOOP = "consume"
OVERDUE_SECONDS = 0.5  # how often the pending list is looked through while fresh mail flows
ADOPT_SECONDS = 60.0  # how often a worker looks for entries that nobody was ever given
REST_SECONDS = 0.2  # how soon a paused worker notices that it may go on
PAUSE_SECONDS = 2.0  # the database has a breaker that spares it
REDIS_SECONDS = 0.5  # so has Redis; after a failover nobody should wait for the new one
READ_BYTES = 2 * 1024 * 1024  # of the stream in one read, about: what comes next is judged by what came last
PART_BYTES = 8 * 1024 * 1024  # of raw messages in one batch, or a single larger one; a few of these are in memory
REMEMBERED = 10_000  # entries this life had, by which it knows those it abandoned itself
TRIAL_SECONDS = 0.2  # while somebody else tries whether what was away is back


class Worker:
    """The loop of one process; `run` in the main thread, `stop` from anywhere."""

    def __init__(
        self,
        queue: Consumer,
        settlement: BatchProcessor,
        *,
        batch: int,
        lease: float,
        paused: Callable[[], object],
        least: Callable[[], int],
        observe: Observe,
    ) -> None:
        self._queue = queue
        self._settlement = settlement
        self._batch = batch
        self._lease = lease
        self._paused = paused
        self._least = least
        self.at_rest = False  # a pause has taken hold: nothing is in hand, and no read is waiting for something
        self._observe = observe
        self._stop = threading.Event()
        self._looked = -OVERDUE_SECONDS
        self._adopted = -ADOPT_SECONDS
        self._failures = 0
        self._most = batch
        self._parts: deque[list[Delivery]] = deque()  # taken, not begun
        self._ahead: InProgress | None = None  # being parsed
        self._in_flight: tuple[str, ...] = ()
        self._seen: deque[str] = deque(maxlen=REMEMBERED)

    def stop(self) -> None:
        """Take nothing more; what is in flight is finished."""
        self._stop.set()

    def run(self) -> None:
        """Work until `stop`."""
        self._work(lambda: False)

    def drain(self) -> None:
        """Work until the stream is empty, what waits for another attempt included."""
        self._work(lambda: self._queue.depth(self._least()) == 0)

    def unregister(self) -> None:
        """Give back what is still held and take the consumer out of the group."""
        with suppress(TransientError):
            self._queue.release(list(self._in_flight))
            self._queue.unregister()

    def _work(self, finished: Callable[[], bool]) -> None:
        beat = threading.Thread(target=self._beat, name="beat", daemon=True)
        beat.start()
        while not self._stop.is_set():
            self._observe(LoopTick(LOOP))
            try:
                self._turn()
                self._failures = 0
                if finished():
                    return
            except Exception as error:  # noqa: BLE001 - the boundary: whatever it is, the loop goes on and says so
                self._wait(error)
        try:
            self._clear()
        except Exception as error:  # noqa: BLE001 - as above
            self._wait(error)

    def _turn(self) -> None:
        if self._paused():
            self._clear()
            self.at_rest = True
            self._stop.wait(REST_SECONDS)
            return
        self.at_rest = False
        if not self._settlement.ready():
            self._give_back()
            self._stop.wait(min(1.0, self._settlement.retry_after()))
            return
        if not self._parts and self._take_overdue():
            return
        part = self._next()
        try:
            begun = self._settlement.submit(part) if part else None
            ahead, self._ahead = self._ahead, begun
            if ahead:
                self._finish(ahead)
        except Exception:
            self._give_back()
            raise

    def _take_overdue(self) -> bool:
        """Settle what is due again, with nothing else in hand: a suspect must not take anybody along.

        Whether anything was settled: then it may have been the last, and nobody should wait for more without a look.
        """
        now = time.monotonic()
        if now - self._adopted >= ADOPT_SECONDS:
            self._queue.recover_orphans()
            self._adopted = now
        if now - self._looked < OVERDUE_SECONDS:
            return False
        in_hand = self._ahead is not None
        self._clear()
        overdue = self._queue.claim_due(self._batch, self._least())
        if not overdue:
            self._looked = now
            return in_hand
        self._announce(overdue)  # and look again at once: there may be more
        self._parts.extend(_parts(overdue))
        self._in_flight = tuple(each.id for each in overdue)
        try:
            while self._parts:
                self._finish(self._settlement.submit(self._parts.popleft()))
        except Exception:
            self._give_back()
            raise
        return True

    def _next(self) -> list[Delivery] | None:
        """A part of what is fresh; waits for mail only when nothing is being parsed."""
        if not self._parts:
            least = self._least()
            fresh = self._queue.read_urgent(self._most, max(least, NORMAL_PRIORITY + 1)) or self._in_turn(least)
            if fresh:
                mean = sum(each.wire_bytes for each in fresh) / len(fresh)
                self._most = max(1, min(self._batch, int(READ_BYTES / max(1.0, mean))))
                self._in_flight += tuple(each.id for each in fresh)
                self._seen.extend(each.id for each in fresh)
                self._parts.extend(_parts(fresh))
        return self._parts.popleft() if self._parts else None

    def _finish(self, begun: InProgress) -> None:
        try:
            self._settlement.finish(begun)
        finally:
            done = {each.id for each in begun.batch}
            self._in_flight = tuple(name for name in self._in_flight if name not in done)

    def _clear(self) -> None:
        """Finish what is being parsed, and release what is not."""
        parts, self._parts = self._parts, deque()
        ahead, self._ahead = self._ahead, None
        left = [each.id for part in parts for each in part]
        try:
            if left:
                self._queue.release(left)
        finally:
            if ahead:
                self._finish(ahead)
            self._in_flight = ()

    def _give_back(self) -> None:
        """Leave to a later attempt whatever is in hand: it is not to blame, and none of it was tried."""
        parts, self._parts = self._parts, deque()
        ahead, self._ahead = self._ahead, None
        left = [each.id for part in parts for each in part]
        if ahead:
            self._settlement.give_back(ahead)
        if left:
            with suppress(TransientError):
                self._queue.extend(left, give_back=True)
        self._in_flight = ()

    def _in_turn(self, least: int) -> Sequence[Delivery]:
        """What comes next, without what is to wait: that is given back untouched, or not even asked for."""
        idle = self._ahead is None
        if least > NORMAL_PRIORITY:
            self._stop.wait(REST_SECONDS if idle else 0)
            return []
        fresh = self._queue.read_new(self._most, block=idle)
        least = self._least()  # an order may have come while the read waited
        waits = [each for each in fresh if each.message and each.message.priority < least]
        self._queue.release([each.id for each in waits])
        return [each for each in fresh if each not in waits]

    def _announce(self, overdue: Sequence[Delivery]) -> None:
        """Entries this life has not had before were abandoned by somebody."""
        orphans = [each.id for each in overdue if each.foreign or each.id not in self._seen]
        self._seen.extend(orphans)
        if orphans:
            self._observe(Reclaimed(len(orphans)))

    def _beat(self) -> None:
        """Tell the others, three times a lease, that what is in flight is not abandoned."""
        while not self._stop.wait(self._lease / 3):
            ids = self._in_flight
            if ids:
                try:
                    self._queue.extend(ids)
                except Exception as error:  # noqa: BLE001 - without its heartbeat a worker loses what it holds
                    self._observe(LoopFailed("beat", error))

    def _wait(self, error: Exception) -> None:
        self._failures += 1
        redis = isinstance(error, (RedisConnectionError, CircuitBreakerError))
        delay = REDIS_SECONDS if redis else min(backoff(self._failures), PAUSE_SECONDS)
        if isinstance(error, CircuitBreakerError):  # no later than its next trial, which costs nothing to wait for
            delay = min(delay, max(error.retry_after, TRIAL_SECONDS))
        self._observe(RedisFailed(error, delay) if redis else LoopFailed(LOOP, error))
        self._stop.wait(delay)


def _parts(batch: Sequence[Delivery]) -> Iterator[list[Delivery]]:
    """The batch in parts of a bounded size: a hundred messages may be a hundred large ones."""
    part: list[Delivery] = []
    size = 0
    for each in batch:
        more = each.message.envelope.size if each.message else each.wire_bytes
        if part and size + more > PART_BYTES:
            yield part
            part, size = [], 0
        part.append(each)
        size += more
    if part:
        yield part
