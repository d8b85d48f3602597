"""The worker's loop: read, parse, record, ack; until stopped. While one batch is recorded, the next one is parsed.

due first (a suspect alone), then urgent, then new ─▶ parse ─▶ database ─▶ ack
                                                        │         │
                                dead letter ◀── permanent, or attempts used up
                                            pending ◀── may work later: back-off
                    given back, no attempt spent ◀── the database or Redis is away

A message that takes long to parse goes on in `slow_lane`, beside the flow. Messages of a priority below the least
wanted one wait in the stream. Further sinks get their messages from the database: `sink_dispatcher`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial

from email_ingestion.background import start_thread
from email_ingestion.backoff import backoff
from email_ingestion.errors import CircuitBreakerError, RedisConnectionError, TransientError
from email_ingestion.events import LoopFailed, LoopRecovered, LoopTick, Observe, Reclaimed, RedisFailed
from email_ingestion.records import NORMAL_PRIORITY
from email_ingestion.stream import Consumer, Delivery
from email_ingestion.worker.processor import BatchProcessor, InProgress

LOOP = "consume"
HEARTBEAT_LOOP = "beat"
CLAIM_SECONDS = 0.5  # between searches of the pending list while new mail flows
ORPHAN_SECONDS = 60.0  # between searches for entries that were never delivered to a consumer
PAUSED_SECONDS = 0.2  # how soon a paused worker notices that it may go on
SLOW_SECONDS = 0.1  # between two looks for mail while nothing but the slow lane has work
DATABASE_SECONDS = 2.0  # longest pause after a failure; the database has a breaker that spares it
REDIS_SECONDS = 0.5  # so has Redis; after a failover the new master should not be waited for
READ_BYTES = 2 * 1024 * 1024  # of the stream in one read, about: estimated from the previous read
PART_BYTES = 8 * 1024 * 1024  # of raw messages in one batch, or a single larger one; a few of these are in memory
REMEMBERED = 10_000  # entries that this process read, by which it knows those it abandoned itself
PROBE_SECONDS = 0.2  # while another thread probes whether Redis is back


class Worker:
    """The loop of one process; `run` in the main thread, `stop` from any thread."""

    def __init__(
        self,
        consumer: Consumer,
        processor: BatchProcessor,
        *,
        batch: Callable[[], int],
        lease: float,
        paused: Callable[[], object],
        min_priority: Callable[[], int],
        suspects: threading.Lock,
        observe: Observe,
    ) -> None:
        """`suspects` is held by whoever in this process handles a message that may have killed a worker."""
        self._consumer = consumer
        self._processor = processor
        self._batch = batch
        self._lease = lease
        self._paused = paused
        self._min_priority = min_priority
        self._suspects = suspects
        self.is_paused = False  # a pause has taken hold: nothing is in flight, and no read waits
        self._observe = observe
        self._stop = threading.Event()
        self._claimed_at = -CLAIM_SECONDS
        self._orphans_at = -ORPHAN_SECONDS
        self._failures = 0
        self._read_limit = batch()
        self._parts: deque[list[Delivery]] = deque()  # read, not submitted
        self._parsing: InProgress | None = None
        self._in_flight: tuple[str, ...] = ()
        self._seen: deque[str] = deque(maxlen=REMEMBERED)

    def stop(self) -> None:
        """Read no more; the messages in flight are finished."""
        self._stop.set()

    def run(self) -> None:
        """Work until `stop`."""
        self._work(lambda: False)

    def drain(self) -> None:
        """Work until the stream is empty, entries that wait for another attempt included."""
        self._work(lambda: self._consumer.depth(self._min_priority()) == 0)

    def unregister(self) -> None:
        """Give back the entries in flight and remove the consumer from the group."""
        with suppress(TransientError):
            self._consumer.release([*self._in_flight, *self._processor.slow_entries])
            self._consumer.unregister()

    def _work(self, finished: Callable[[], bool]) -> None:
        heartbeat = partial(threading.Thread, target=self._heartbeat, name=HEARTBEAT_LOOP, daemon=True)
        start_thread(heartbeat, self._heartbeat_failed, self._stop.is_set)
        while not self._stop.is_set():
            self._observe(LoopTick(LOOP))
            try:
                self._run_once()
                if self._failures:
                    self._observe(LoopRecovered(LOOP))
                self._failures = 0
                if finished():
                    return
            except Exception as error:  # noqa: BLE001 - the boundary: whatever it is, the loop goes on and reports it
                self._wait(error)
        try:
            self._processor.leave_slow_lane()
            self._clear()
        except Exception as error:  # noqa: BLE001 - as above
            self._wait(error)

    def _run_once(self) -> None:
        if self._paused():
            self._clear()
            self._processor.leave_slow_lane()
            self.is_paused = True
            self._stop.wait(PAUSED_SECONDS)
            return
        self.is_paused = False
        if not self._processor.ready():
            self._give_back()
            self._stop.wait(min(1.0, self._processor.retry_after()))
            return
        self._processor.attend_slow_lane()
        if not self._parts and self._process_due():
            return
        part = self._next_part()
        try:
            submitted = self._processor.submit(part) if part else None
            previous, self._parsing = self._parsing, submitted
            if previous:
                self._finish(previous)
        except Exception:
            self._give_back()
            raise

    def _process_due(self) -> bool:
        """Process due entries, with nothing else in flight: a suspect must not take other messages along.

        Returns whether anything was processed: it may have been the last, and no read should wait for more mail then.
        """
        now = time.monotonic()
        if now - self._orphans_at >= ORPHAN_SECONDS:
            self._consumer.recover_orphans()
            self._orphans_at = now
        if now - self._claimed_at < CLAIM_SECONDS or not self._suspects.acquire(blocking=False):
            return False  # a claim would count against entries over which a sink's suspect kills us
        try:
            return self._claim_and_process(now)
        finally:
            self._suspects.release()

    def _claim_and_process(self, now: float) -> bool:
        was_parsing = self._parsing is not None
        self._clear()
        if slow := self._processor.slow_entries:
            self._consumer.extend(slow)  # else they are due like any entry of ours that is not in flight
        due = self._consumer.claim_due(self._batch(), self._min_priority())
        if not due:
            self._claimed_at = now
            return was_parsing
        self._report_orphans(due)  # the next turn claims without a pause: there may be more
        self._parts.extend(_parts(due))
        self._in_flight = tuple(delivery.id for delivery in due)
        try:
            while self._parts:
                self._finish(self._processor.submit(self._parts.popleft()))
        except Exception:
            self._give_back()
            raise
        return True

    def _next_part(self) -> list[Delivery] | None:
        """Return the next part of new mail; wait for mail only when nothing is being parsed."""
        if not self._parts:
            min_priority = self._min_priority()
            self._read_limit = min(self._read_limit, self._batch())
            urgent = self._consumer.read_urgent(self._read_limit, max(min_priority, NORMAL_PRIORITY + 1))
            new = urgent or self._read_new(min_priority)
            if new:
                mean = sum(delivery.wire_bytes for delivery in new) / len(new)
                self._read_limit = max(1, min(self._batch(), int(READ_BYTES / max(1.0, mean))))
                self._in_flight += tuple(delivery.id for delivery in new)
                self._seen.extend(delivery.id for delivery in new)
                self._parts.extend(_parts(new))
        return self._parts.popleft() if self._parts else None

    def _finish(self, work: InProgress) -> None:
        try:
            self._processor.finish(work)
        finally:
            done = {delivery.id for delivery in work.batch}
            self._in_flight = tuple(entry_id for entry_id in self._in_flight if entry_id not in done)

    def _clear(self) -> None:
        """Finish the batch that is being parsed, and release the others."""
        parsing, left = self._take_in_flight()
        try:
            if left:
                self._consumer.release(left)
        finally:
            if parsing:
                self._finish(parsing)
            self._in_flight = ()

    def _give_back(self) -> None:
        """Leave the messages in flight to a later attempt: they are not at fault, and none of them was tried."""
        parsing, left = self._take_in_flight()
        if parsing:
            self._processor.give_back(parsing)
        if left:
            with suppress(TransientError):
                self._consumer.extend(left, give_back=True)
        self._in_flight = ()

    def _take_in_flight(self) -> tuple[InProgress | None, list[str]]:
        parts, self._parts = self._parts, deque()
        parsing, self._parsing = self._parsing, None
        return parsing, [delivery.id for part in parts for delivery in part]

    def _read_new(self, min_priority: int) -> Sequence[Delivery]:
        """Read new entries; those below the least priority are released untouched, or not even read."""
        idle = self._parsing is None
        if min_priority > NORMAL_PRIORITY:
            self._stop.wait(PAUSED_SECONDS if idle else 0)
            return []
        slow = bool(self._processor.slow_entries)  # it is settled as soon as it is parsed, or revoked
        new = self._consumer.read_new(self._read_limit, block=idle and not slow)
        if idle and slow and not new:
            self._stop.wait(SLOW_SECONDS)
        min_priority = self._min_priority()  # an override may have come while the read waited
        too_low = [delivery for delivery in new if delivery.message and delivery.message.priority < min_priority]
        self._consumer.release([delivery.id for delivery in too_low])
        return [delivery for delivery in new if delivery not in too_low]

    def _report_orphans(self, due: Sequence[Delivery]) -> None:
        """Report entries that this process has not read before: another one abandoned them."""
        orphans = [delivery.id for delivery in due if delivery.foreign or delivery.id not in self._seen]
        self._seen.extend(orphans)
        if orphans:
            self._observe(Reclaimed(len(orphans)))

    def _heartbeat(self) -> None:
        """Extend the entries in flight three times a lease, so that no other worker claims them."""
        while not self._stop.wait(self._lease / 3):
            ids = {*self._in_flight, *self._processor.slow_entries}
            if ids:
                try:
                    self._consumer.extend(ids)
                except Exception as error:  # noqa: BLE001 - without its heartbeat a worker loses its entries
                    self._heartbeat_failed(error)

    def _heartbeat_failed(self, error: Exception) -> None:
        self._observe(LoopFailed(HEARTBEAT_LOOP, error, self._lease / 3))

    def _wait(self, error: Exception) -> None:
        self._failures += 1
        redis = isinstance(error, (RedisConnectionError, CircuitBreakerError))
        delay = REDIS_SECONDS if redis else min(backoff(self._failures), DATABASE_SECONDS)
        if isinstance(error, CircuitBreakerError):  # no longer than until its next probe, which costs nothing
            delay = min(delay, max(error.retry_after, PROBE_SECONDS))
        self._observe(RedisFailed(error, delay, LOOP) if redis else LoopFailed(LOOP, error, delay))
        self._stop.wait(delay)


def _parts(batch: Sequence[Delivery]) -> Iterator[list[Delivery]]:
    """Yield the batch in parts of a bounded size: a hundred messages may be a hundred large ones."""
    part: list[Delivery] = []
    size = 0
    for delivery in batch:
        added = delivery.message.envelope.size if delivery.message else delivery.wire_bytes
        if part and size + added > PART_BYTES:
            yield part
            part, size = [], 0
        part.append(delivery)
        size += added
    if part:
        yield part
