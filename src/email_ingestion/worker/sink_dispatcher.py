"""From the database to one further sink: claim, parse again, deliver, mark; a slow sink delays only itself.

claim ─▶ parse ─▶ sink ─▶ delivered
                   │
    dead letter ◀── permanent, or attempts used up
        waiting ◀── may work later: back-off
     given back, no attempt spent ◀── the sink is away, or asks for a pause

Messages are parsed here without isolation: only those get into the database that the isolated parser survived.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from email_ingestion.background import START_SECONDS, start_thread
from email_ingestion.backoff import backoff
from email_ingestion.blobs import BlobStore
from email_ingestion.breaker import Breaker
from email_ingestion.errors import (
    CircuitBreakerError,
    EmailIngestionError,
    PermanentError,
    Retry,
    SinkFailed,
    SinkThrottled,
    SinkTimedOut,
    SinkUnavailable,
    TransientError,
)
from email_ingestion.events import (
    DeadLettered,
    Deferred,
    DueTimesMended,
    LoopFailed,
    LoopTick,
    Observe,
    SinkBacklog,
    SinkCalls,
    SinkClaimLost,
    SinkDelivered,
    SinkHung,
)
from email_ingestion.identity import EMAIL_ID
from email_ingestion.ledger.outbox import DeliveryClaim, PendingDelivery, boot_time
from email_ingestion.ledger.store import Ledger
from email_ingestion.parsing import parse
from email_ingestion.records import RawMessage, SinkMessage
from email_ingestion.sinks import Sink
from email_ingestion.stream import DeadLetterQueue
from email_ingestion.stream.dead_letters import Reason, dead_letter_fields
from email_ingestion.worker.failure_attribution import NO_MESSAGE_AT_FAULT, attribute_failures
from email_ingestion.worker.processor import is_available, stack_frames
from email_ingestion.worker.sink_executor import Result, RunningCall, SinkExecutor
from email_ingestion.worker.standstill import StandstillWatch

CLAIM_SECONDS = 0.5  # between claims, for what other processes recorded and what becomes due; else `wake` is called
MARK_SECONDS = 0.5  # of deliveries that the sink gets twice when the process is killed
HELD_SECONDS = 0.5  # after which it is asked again, before a message is handed over, whether the claim is ours
TICK_SECONDS = 0.5  # while calls run: between two looks at how long they have lasted
SHOWN_SECONDS = 1.0  # after which a running call is announced
GRACE_SECONDS = 1.0  # for a sink that ends its calls itself
READ_SECONDS = 5.0  # that messages are read before the first of them is handed over
BACKLOG_SECONDS = 5.0  # between two counts of the deliveries that wait
LONGEST_PAUSE = 2.0  # seconds, between tries at a sink that is away: then its breaker spares it
DEAD_LETTER_RETRY_SECONDS = 30.0  # until Redis is tried again when it did not take a dead letter


def loop_name(sink: str) -> str:
    """Return the name of a dispatcher's loop."""
    return f"sink {sink}"


@dataclass(slots=True)
class _Claimed:
    """A claim, and the results of its messages so far."""

    claim: DeliveryClaim
    left: dict[str, PendingDelivery]  # neither delivered nor decided on
    results: list[tuple[str, EmailIngestionError | None]] = field(default_factory=list)
    unmarked: list[str] = field(default_factory=list)
    marked_at: float = field(default_factory=time.monotonic)
    extended_at: float = field(default_factory=time.monotonic)
    held_at: float = field(default_factory=boot_time)  # when it was certain that the claim is ours
    lost: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)  # of `claim`, `held_at` and `lost`


class SinkDispatcher:
    """Serves one sink on threads of its own: `start`, `wake` when there may be new deliveries, `stop`, `join`.

    It claims `batch` messages at a time, for `lease` seconds that are extended as long as it takes. A call that lasts
    longer than `timeout` seconds is ended by the sink, if it can; else nothing more is called until it returns.
    """

    def __init__(
        self,
        name: str,
        sink: Sink,
        breaker: Breaker,
        *,
        ledger: Ledger,
        blobs: BlobStore,
        dead_letters: DeadLetterQueue,
        paused: Callable[[], object],
        batch: int,
        lease: float,
        timeout: float,
        max_retries: int,
        instance: str,
        suspects: threading.Lock,
        observe: Observe,
    ) -> None:
        """`suspects` is held by whoever in this process handles a message that may have killed a worker."""
        self._name = name
        self._sink = sink
        self._breaker = breaker
        self._ledger = ledger
        self._outbox = ledger.outbox
        self._blobs = blobs
        self._dead_letters = dead_letters
        self._paused = paused
        self._batch = batch
        self._lease = lease
        self._timeout = timeout
        self._max_retries = max_retries
        self._instance = instance
        self._suspects = suspects
        self._observe = observe
        self._standstill = StandstillWatch(name, ledger.outbox, breaker, suspects, instance)
        self._executor = SinkExecutor(name, sink, breaker, self._is_held, self._start_failed)
        self._claimed: _Claimed | None = None
        self._unreleased: list[tuple[DeliveryClaim, tuple[str, ...]]] = []  # the database was away when we let go of it
        self._hung: str | None = None  # the message of the call that does not return
        self._problem: str | None = None  # what is wrong with the sink itself, until it takes a message
        self._calls_shown = False
        self._stopped = threading.Event()
        self._awake = threading.Event()
        self._revoked: set[str] = set()
        self._recovered = False
        self._not_before = 0.0
        self._counted_at = -BACKLOG_SECONDS
        self._failures = 0
        self._proven = True  # it has taken a message since its breaker was last open, or is new to us
        self._make_thread = partial(threading.Thread, target=self._run, name=loop_name(name), daemon=True)
        self._thread = self._make_thread()

    def start(self) -> None:
        """Start the threads; the first claim is of messages over which an earlier life was killed."""
        self._thread = start_thread(self._make_thread, self._start_failed, self._stopped.is_set)

    def _start_failed(self, error: Exception) -> None:
        self._observe(LoopFailed(loop_name(self._name), error, START_SECONDS))

    def wake(self) -> None:
        """Claim now: messages were recorded."""
        self._awake.set()

    def stop(self) -> None:
        """Claim no more; the present deliveries are finished."""
        self._stopped.set()
        self._executor.stop()
        self._awake.set()

    def join(self) -> None:
        """Wait for the end."""
        if self._thread.is_alive():
            self._thread.join()

    def revoke(self, email_id: str) -> bool:
        """Dead-letter a claimed message, as soon as the sink lets go of it if it has it.

        A function in a process of its own is ended for it; a message that the sink takes after all is delivered.
        Thread-safe; returns False when this worker has not claimed the message for this sink.
        """
        claimed = self._claimed
        if claimed is None or email_id not in claimed.left:
            return False
        self._executor.revoke(email_id)
        self._revoked.add(email_id)
        return True

    def done(self) -> bool:
        """Whether nothing waits for the sink, also not for another attempt or to be sent again."""
        backlog = self._outbox.backlog(self._name)
        return backlog.waiting + backlog.resends == 0

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._observe(LoopTick(loop_name(self._name)))
            self._awake.clear()
            try:
                pause = self._run_once()
            except BaseException as error:  # noqa: BLE001 - the boundary: whatever it is, the loop goes on and reports it
                shown = error if isinstance(error, Exception) else SinkFailed(f"{type(error).__name__} in its loop")
                self._pause()
                self._observe(LoopFailed(loop_name(self._name), shown, self._not_before - time.monotonic()))
                pause = CLAIM_SECONDS
            if pause:
                self._awake.wait(pause)
        self._executor.close()

    def _run_once(self) -> float:
        """Claim and deliver once; return the seconds until the next claim."""
        self._report_backlog()
        if not self._recovered:
            self._outbox.recover(self._name, self._instance)
            self._recovered = True
        self._release_rest()
        wait = self._not_before - time.monotonic()
        if wait > 0 or self._paused() or not is_available(self._sink, self._breaker):
            return min(CLAIM_SECONDS, max(0.05, wait))
        before = boot_time()
        limit = self._batch if self._proven else 1
        alone = self._suspects.acquire(blocking=False)  # else a claim would count against what another one's kills
        try:
            claim = self._outbox.claim(self._name, self._instance, limit, self._lease, suspects=alone)
            if alone and not claim.abandoned:
                self._suspects.release()
                alone = False
            if not claim.deliveries:
                return CLAIM_SECONDS
            self._deliver(claim, before)
            return 0.0
        finally:
            if alone:
                self._suspects.release()

    def _report_backlog(self) -> None:
        if time.monotonic() - self._counted_at < BACKLOG_SECONDS:
            return
        self._counted_at = time.monotonic()
        try:
            backlog = self._outbox.backlog(self._name)
        except SinkUnavailable:
            self._observe(SinkBacklog(self._name, None, None))
            raise
        if not backlog.waiting and self._problem:
            self._problem = None
            self._report_calls()
        mended = self._outbox.mend_due_times(self._name, self._lease) if backlog.waiting else 0
        if mended:
            self._observe(DueTimesMended(self._name, mended))
            self._awake.set()
        pause = max(0.0, self._not_before - time.monotonic())
        reason = self._standstill.explain(backlog, paused=bool(self._paused()), pause=pause)
        oldest = backlog.oldest.timestamp() if backlog.oldest else None
        self._observe(SinkBacklog(self._name, backlog.waiting, oldest, backlog.resends, reason))

    def _deliver(self, claim: DeliveryClaim, since: float) -> None:
        deliveries = {delivery.envelope.email_id: delivery for delivery in claim.deliveries}
        claimed = _Claimed(claim, deliveries, held_at=since)
        self._claimed = claimed
        try:
            for messages, error in self._results(claimed, self._read_messages(claimed)):
                self._note(claimed, messages, error)
            self._settle(claimed)
        finally:
            self._end_calls(claimed)
            self._claimed = None
            self._report_calls()
            try:
                self._mark_delivered(claimed)
                self._release(claimed.claim, claimed.left)
            finally:
                for delivery in claim.deliveries:
                    self._revoked.discard(delivery.envelope.email_id)
                    self._executor.forget_revoked(delivery.envelope.email_id)

    def _release(self, claim: DeliveryClaim, email_ids: Collection[str]) -> None:
        """Give messages back; where the database is away, do so when it is there again.

        Else they would come as those over which a worker was killed: one at a time, an attempt of each spent.
        """
        if email_ids:
            self._unreleased.append((claim, tuple(email_ids)))
            self._release_rest()

    def _release_rest(self) -> None:
        while self._unreleased:
            self._outbox.release(*self._unreleased[0])
            del self._unreleased[0]

    def _read_messages(self, claimed: _Claimed) -> list[SinkMessage]:
        """Read what is to be delivered, but no longer than the first may wait for the others; keep the claim."""
        began = ticked = time.monotonic()
        found = []
        for message in self._messages(claimed):
            found.append(message)
            now = time.monotonic()
            if now - began > READ_SECONDS:
                break  # the others are given back
            if now - ticked > TICK_SECONDS:
                ticked = now
                self._observe(LoopTick(loop_name(self._name)))
                self._extend(claimed)
        return found

    def _messages(self, claimed: _Claimed) -> Iterator[SinkMessage]:
        """Yield the messages to deliver; those that cannot be read are decided on here."""
        for delivery in list(claimed.left.values()):
            if claimed.claim.abandoned and delivery.attempt > self._max_retries + 1:
                # These attempts were not counted as failures, so each of them ended its worker.
                self._dead_letter(claimed, delivery, "poison", None)
                continue
            try:
                yield self._message(delivery)
            except SinkUnavailable:  # the database or the blob store is away, and no message is at fault
                raise
            except EmailIngestionError as error:
                self._fail(claimed, delivery, error)

    def _message(self, delivery: PendingDelivery) -> SinkMessage:
        if not EMAIL_ID.fullmatch(delivery.envelope.email_id):  # it would become a file's name, a header, a key
            raise PermanentError("its row in the database was written by none of our releases")
        inside = self._ledger.content(delivery.raw_ref)
        raw = self._blobs.get(delivery.raw_ref) if inside is None else inside
        email = parse(delivery.envelope, raw)
        if delivery.priority is not None:
            email = replace(email, tags=delivery.tags, priority=delivery.priority)
        return SinkMessage(email, raw)

    def _results(self, claimed: _Claimed, messages: Sequence[SinkMessage]) -> Iterator[Result]:
        """Yield the results in the order in which the sink gives them."""
        self._executor.submit(messages)
        while self._executor.outstanding:
            result = self._executor.next_result(min(TICK_SECONDS, self._lease / 3))
            self._keep_going(claimed)
            if self._hung:
                self._give_back(claimed)
            if result is None:
                continue
            chunk, error = result
            self._keep_problem(error, delivered=bool(chunk) and error is None)
            if error and len(chunk) > 1 and not isinstance(error, NO_MESSAGE_AT_FAULT):
                self._executor.submit(chunk, singly=True)  # to find the message at fault
            else:
                yield result

    def _keep_going(self, claimed: _Claimed) -> None:
        """Do what must not wait for a result."""
        self._observe(LoopTick(loop_name(self._name)))
        self._extend(claimed)
        self._watch_calls()
        with suppress(SinkUnavailable):  # it is announced; the calls go on
            self._report_backlog()
            self._release_rest()
        self._mark_when_due(claimed)  # also while the sink is slow over the next message

    def _end_calls(self, claimed: _Claimed) -> None:
        """Where something of ours failed in the middle, wait for the calls that have begun, and begin no more.

        Their results would be taken for those of the next claim.
        """
        self._executor.withdraw()
        while self._executor.outstanding and not self._stopped.is_set():
            self._observe(LoopTick(loop_name(self._name)))
            with suppress(Exception):  # what failed may fail again, and the calls go on all the same
                self._extend(claimed)
            self._watch_calls()
            chunk, error = self._executor.next_result(min(TICK_SECONDS, self._lease / 3)) or ((), None)
            if error is None:
                self._take_delivered(claimed, chunk)

    def _keep_problem(self, error: EmailIngestionError | None, *, delivered: bool) -> None:
        """Remember what is wrong with the sink until it takes a message: a ping may succeed where no post does."""
        proven = self._proven and self._breaker.closed
        if delivered:
            self._problem = None
        elif isinstance(error, (SinkUnavailable, SinkThrottled, SinkTimedOut)) or (
            isinstance(error, SinkFailed) and not proven
        ):
            self._problem = str(error)

    def _watch_calls(self) -> None:
        """Announce calls that take long, and find out whether one is past the time that any may take."""
        running = self._executor.running()
        hung = running[0].email_ids[0] if running and running[0].seconds > self._timeout + GRACE_SECONDS else None
        if hung and hung != self._hung:
            self._observe(SinkHung(self._name, hung, self._timeout))
        self._hung = hung
        self._report_calls(running)

    def _report_calls(self, running: Sequence[RunningCall] = ()) -> None:
        shown = [call for call in running if call.seconds > SHOWN_SECONDS]
        problem = self._problem
        if shown and shown[0].seconds > self._timeout / 2:
            problem = f"it has been handling {shown[0].email_ids[0]} for {shown[0].seconds:.0f} s"
        if shown or problem or self._calls_shown:
            calls = tuple((email_id, call.since) for call in shown for email_id in call.email_ids)
            self._observe(SinkCalls(self._name, calls, problem))
        self._calls_shown = bool(shown or problem)

    def _give_back(self, claimed: _Claimed) -> None:
        """Release what the sink has not got yet, so that another worker may deliver it."""
        chunks = self._executor.withdraw()
        email_ids = [message.email.email_id for chunk in chunks for message in chunk]
        email_ids = [email_id for email_id in email_ids if email_id not in self._revoked]
        for email_id in email_ids:
            claimed.left.pop(email_id, None)
        with suppress(SinkUnavailable):  # it is tried again
            self._release(claimed.claim, email_ids)

    def _note(self, claimed: _Claimed, messages: Sequence[SinkMessage], error: EmailIngestionError | None) -> None:
        claimed.results += [(message.email.email_id, error) for message in messages]
        if error is None:
            self._take_delivered(claimed, messages)
        if error and not isinstance(error, CircuitBreakerError):
            self._observe(SinkDelivered(self._name, "failed", len(messages)))
        self._mark_when_due(claimed)

    def _take_delivered(self, claimed: _Claimed, messages: Sequence[SinkMessage]) -> None:
        for message in messages:
            claimed.left.pop(message.email.email_id, None)
            claimed.unmarked.append(message.email.email_id)

    def _mark_when_due(self, claimed: _Claimed) -> None:
        if time.monotonic() - claimed.marked_at >= MARK_SECONDS:
            self._mark_delivered(claimed)

    def _mark_delivered(self, claimed: _Claimed) -> None:
        """Mark what the sink has, however long the database is away: else the sink would get it twice."""
        while claimed.unmarked:
            try:
                self._outbox.mark_delivered(claimed.claim, claimed.unmarked)
            except SinkUnavailable as error:
                self._observe(LoopFailed(loop_name(self._name), error, 1.0))
                if self._stopped.wait(1.0):
                    raise
                continue
            self._observe(SinkDelivered(self._name, "delivered", len(claimed.unmarked)))
            claimed.unmarked.clear()
        claimed.marked_at = time.monotonic()

    def _extend(self, claimed: _Claimed) -> None:
        if claimed.left and time.monotonic() - claimed.extended_at >= self._lease / 3:
            now = boot_time()
            # Where the database is away other workers cannot claim them either.
            with suppress(SinkUnavailable), claimed.lock:
                claimed.claim, lost = self._outbox.extend(claimed.claim, claimed.left, self._lease)
                claimed.held_at = now
                if lost:
                    self._lose(claimed, len(lost))
            claimed.extended_at = time.monotonic()

    def _is_held(self, email_ids: Collection[str]) -> bool:
        """Whether the claim is still ours, asked of the database where that is not certain; in the sink's threads.

        A process that was stopped for longer than its lease goes on where it was, and does not know.
        """
        claimed = self._claimed
        if claimed is None:
            return False
        with claimed.lock:
            now = boot_time()
            if claimed.lost or now - claimed.held_at < HELD_SECONDS:
                return not claimed.lost
            try:
                held = self._outbox.is_held(claimed.claim, email_ids)
            except SinkUnavailable:
                return now - claimed.held_at < self._lease / 2
            if held:
                claimed.held_at = now
            else:
                self._lose(claimed, len(claimed.left))
            return held

    def _lose(self, claimed: _Claimed, count: int) -> None:
        """Hand nothing more over of this claim; what is still ours of it is given back at its end."""
        if not claimed.lost:
            claimed.lost = True
            self._observe(SinkClaimLost(self._name, count))

    def _settle(self, claimed: _Claimed) -> None:
        """Decide on failed messages; those not at fault stay in `left`, to be given back."""
        closed = self._breaker.closed
        attribution = attribute_failures([error for _, error in claimed.results], proven=self._proven and closed)
        for index in (*attribution.permanent, *attribution.failed):
            email_id, error = claimed.results[index]
            if error:
                self._fail(claimed, claimed.left[email_id], error)
        for email_id in self._revoked & claimed.left.keys():
            self._dead_letter(claimed, claimed.left[email_id], "operator", None)
        self._proven = closed and (self._proven or attribution.delivered_any)
        if attribution.delivered_any or not claimed.left:
            self._failures = 0
        else:
            self._pause()
        if attribution.pause:
            self._not_before = time.monotonic() + attribution.pause

    def _pause(self) -> None:
        self._failures += 1
        self._not_before = time.monotonic() + backoff(self._failures, cap=LONGEST_PAUSE)

    def _fail(self, claimed: _Claimed, delivery: PendingDelivery, error: EmailIngestionError) -> None:
        """Schedule another attempt, or dead-letter the message."""
        if delivery.envelope.email_id in self._revoked:
            self._dead_letter(claimed, delivery, "operator", None)
        elif isinstance(error, PermanentError):
            self._dead_letter(claimed, delivery, "permanent", error)
        elif delivery.attempt > self._max_retries:
            self._dead_letter(claimed, delivery, "max_retries", error)
        else:
            requested = error.after if isinstance(error, Retry) else None
            seconds = backoff(delivery.attempt) if requested is None else requested
            self._defer(claimed, delivery, error, seconds)

    def _defer(self, claimed: _Claimed, delivery: PendingDelivery, error: EmailIngestionError, seconds: float) -> None:
        email_id = delivery.envelope.email_id
        self._outbox.defer(claimed.claim, {email_id: seconds})
        del claimed.left[email_id]
        self._observe(Deferred(email_id, delivery.attempt, error, seconds, self._name))

    def _dead_letter(
        self, claimed: _Claimed, delivery: PendingDelivery, reason: Reason, error: EmailIngestionError | None
    ) -> None:
        email_id = delivery.envelope.email_id
        if reason == "operator" and self._outbox.pending(self._name, email_id) is None:
            del claimed.left[email_id]  # the operator did not wait for this worker
            return
        message = undelivered_message(self._ledger, delivery, self._name)
        fields = dead_letter_fields(reason, delivery.attempt, error, stack_frames(error), self._instance)
        try:
            self._dead_letters.add(message, fields)
        except TransientError as redis_error:  # the sink gets the message once more before the next try
            self._defer(claimed, delivery, redis_error, DEAD_LETTER_RETRY_SECONDS)
            return
        self._outbox.mark_dead(claimed.claim, [email_id])
        del claimed.left[email_id]
        self._observe(DeadLettered(email_id, reason, delivery.attempt, error, self._name))


def undelivered_message(ledger: Ledger, delivery: PendingDelivery, sink: str) -> RawMessage:
    """Return the message of a dead letter for one sink; without its bytes where the blob store has them."""
    try:
        inside = ledger.content(delivery.raw_ref)
    except SinkUnavailable:
        raise
    except TransientError:  # they are damaged
        inside = None
    return RawMessage(delivery.envelope, inside, None if inside is not None else delivery.raw_ref, sink)
