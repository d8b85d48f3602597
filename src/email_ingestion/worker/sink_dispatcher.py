"""From the database to one further sink: claim, parse again, hand over, mark; a slow sink delays only itself.

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from email_ingestion.backoff import backoff
from email_ingestion.blobs import BlobStore
from email_ingestion.breaker import Breaker
from email_ingestion.errors import (
    CircuitBreakerError,
    EmailIngestionError,
    PermanentError,
    Retry,
    SinkUnavailable,
    TransientError,
)
from email_ingestion.events import DeadLettered, Deferred, LoopFailed, LoopTick, Observe, SinkDelivered
from email_ingestion.events import SinkBacklog as Owing
from email_ingestion.ledger.outbox import DeliveryClaim, PendingDelivery
from email_ingestion.ledger.store import Ledger
from email_ingestion.parsing import parse
from email_ingestion.records import RawMessage, SinkMessage
from email_ingestion.sinks import Sink
from email_ingestion.stream import DeadLetterQueue
from email_ingestion.stream.dead_letters import Reason, dead_letter_fields
from email_ingestion.worker.failure_attribution import NO_MESSAGE_AT_FAULT, attribute_failures
from email_ingestion.worker.processor import is_available, stack_frames
from email_ingestion.worker.sink_executor import SinkExecutor

LOOK_SECONDS = 0.5  # for what others recorded and what becomes due; what this process records wakes the courier
MARK_SECONDS = 0.5  # of deliveries that a kill makes the sink see again
TICK_SECONDS = 5.0
TELL_SECONDS = 5.0  # between two counts of what a sink is owed
LONGEST_PAUSE = 2.0  # seconds, between tries at a sink that is away: then its breaker spares it
UNBURIED_SECONDS = 30.0  # until Redis is asked again to take a dead letter


def loop_name(sink: str) -> str:
    """The name of a courier's loop."""
    return f"sink {sink}"


@dataclass(slots=True)
class _Round:
    """One claim, and what has become of its messages so far."""

    claim: DeliveryClaim
    left: dict[str, PendingDelivery]  # neither taken nor decided on
    answers: list[tuple[str, EmailIngestionError | None]] = field(default_factory=list)
    unmarked: list[str] = field(default_factory=list)
    marked_at: float = field(default_factory=time.monotonic)
    held_at: float = field(default_factory=time.monotonic)


class SinkDispatcher:
    """Serves one sink on threads of its own: `start`, `wake` when there may be something new, `stop`, `join`.

    `batch` messages are claimed at once, for `lease` seconds that are prolonged as long as it takes.
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
        max_retries: int,
        instance: str,
        observe: Observe,
    ) -> None:
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
        self._max_retries = max_retries
        self._instance = instance
        self._observe = observe
        self._hands = SinkExecutor(name, sink, breaker)
        self._stopped = threading.Event()
        self._awake = threading.Event()
        self._recovered = False
        self._not_before = 0.0
        self._told_at = -TELL_SECONDS
        self._failures = 0
        self._proven = True  # it has taken something since its breaker was last open, or is new to us
        self._thread = threading.Thread(target=self._run, name=loop_name(name), daemon=True)

    def start(self) -> None:
        """Begin, with what an earlier life was killed over."""
        self._thread.start()

    def wake(self) -> None:
        """Look now: something was recorded."""
        self._awake.set()

    def stop(self) -> None:
        """Claim nothing more; what is being handed over is finished."""
        self._stopped.set()
        self._hands.stop()
        self._awake.set()

    def join(self) -> None:
        """Wait for the end."""
        self._thread.join()

    def done(self) -> bool:
        """Whether the sink has everything it is owed, what waits for another attempt included."""
        return self._outbox.backlog(self._name).waiting == 0

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._observe(LoopTick(loop_name(self._name)))
            self._awake.clear()
            try:
                pause = self._turn()
            except Exception as error:  # noqa: BLE001 - the boundary: whatever it is, the loop goes on and says so
                self._observe(LoopFailed(loop_name(self._name), error))
                self._pause()
                pause = LOOK_SECONDS
            if pause:
                self._awake.wait(pause)
        self._hands.close()

    def _turn(self) -> float:
        """One claim; returns the seconds after which to look again."""
        self._tell()
        if not self._recovered:
            self._outbox.recover(self._name, self._instance)
            self._recovered = True
        wait = self._not_before - time.monotonic()
        if wait > 0 or self._paused() or not is_available(self._sink, self._breaker):
            return min(LOOK_SECONDS, max(0.05, wait))
        claim = self._outbox.claim(self._name, self._instance, self._batch if self._proven else 1, self._lease)
        if not claim.deliveries:
            return LOOK_SECONDS
        self._serve(claim)
        return 0.0

    def _tell(self) -> None:
        """Say now and then what the sink is owed."""
        if time.monotonic() - self._told_at < TELL_SECONDS:
            return
        self._told_at = time.monotonic()
        try:
            backlog = self._outbox.backlog(self._name)
        except SinkUnavailable:
            self._observe(Owing(self._name, None, None))
            raise
        self._observe(Owing(self._name, backlog.waiting, backlog.oldest.timestamp() if backlog.oldest else None))

    def _serve(self, claim: DeliveryClaim) -> None:
        work = _Round(claim, {owed.envelope.email_id: owed for owed in claim.deliveries})
        try:
            for chunk, error in self._answers(work, list(self._parcels(work))):
                self._note(work, chunk, error)
            self._settle(work)
        finally:
            self._mark(work)
            if work.left:
                self._outbox.release(work.claim, work.left)

    def _parcels(self, work: _Round) -> Iterator[SinkMessage]:
        """The messages to hand over; those that cannot be read are decided on here."""
        for owed in list(work.left.values()):
            if work.claim.abandoned and owed.attempt > self._max_retries + 1:
                # Nobody counted these attempts as failures, so each of them ended its worker.
                self._dead_letter(work, owed, "poison", None)
                continue
            try:
                yield self._parcel(owed)
            except SinkUnavailable:  # the database or the blob store is away, and no message is to blame
                raise
            except EmailIngestionError as error:
                self._fail(work, owed, error)

    def _parcel(self, owed: PendingDelivery) -> SinkMessage:
        inside = self._ledger.content(owed.raw_ref)
        raw = self._blobs.get(owed.raw_ref) if inside is None else inside
        email = parse(owed.envelope, raw)
        if owed.priority is not None:
            email = replace(email, tags=owed.tags, priority=owed.priority)
        return SinkMessage(email, raw)

    def _answers(
        self, work: _Round, parcels: Sequence[SinkMessage]
    ) -> Iterator[tuple[Sequence[SinkMessage], EmailIngestionError | None]]:
        """What the sink says, in the order in which it says so."""
        open_ends = self._hands.submit(parcels)
        while open_ends:
            answer = self._hands.next_result(min(TICK_SECONDS, self._lease / 3))
            self._observe(LoopTick(loop_name(self._name)))
            self._hold(work)
            if answer is None:
                continue
            open_ends -= 1
            chunk, error = answer
            if (
                error and len(chunk) > 1 and not isinstance(error, NO_MESSAGE_AT_FAULT)
            ):  # find out which message is to blame
                open_ends += self._hands.submit(chunk, singly=True)
            else:
                yield answer

    def _note(self, work: _Round, chunk: Sequence[SinkMessage], error: EmailIngestionError | None) -> None:
        for parcel in chunk:
            email_id = parcel.email.email_id
            work.answers.append((email_id, error))
            if error is None:
                del work.left[email_id]
                work.unmarked.append(email_id)
        if error and not isinstance(error, CircuitBreakerError):
            self._observe(SinkDelivered(self._name, "failed", len(chunk)))
        if time.monotonic() - work.marked_at >= MARK_SECONDS:
            self._mark(work)

    def _mark(self, work: _Round) -> None:
        """Write down what the sink has, however long the database is away: else the sink would get it again."""
        while work.unmarked:
            try:
                self._outbox.mark_delivered(work.claim, work.unmarked)
            except SinkUnavailable as error:
                self._observe(LoopFailed(loop_name(self._name), error))
                if self._stopped.wait(1.0):
                    raise
                continue
            self._observe(SinkDelivered(self._name, "delivered", len(work.unmarked)))
            work.unmarked.clear()
        work.marked_at = time.monotonic()

    def _hold(self, work: _Round) -> None:
        if work.left and time.monotonic() - work.held_at >= self._lease / 3:
            with suppress(SinkUnavailable):  # then nobody else can take them over either
                work.claim = self._outbox.extend(work.claim, work.left, self._lease)
            work.held_at = time.monotonic()

    def _settle(self, work: _Round) -> None:
        """Decide on what the sink did not take; whoever is not to blame stays among those left, to be given back."""
        closed = self._breaker.closed
        verdict = attribute_failures([error for _, error in work.answers], proven=self._proven and closed)
        for place in (*verdict.permanent, *verdict.failed):
            email_id, error = work.answers[place]
            if error:
                self._fail(work, work.left[email_id], error)
        self._proven = closed and (self._proven or verdict.taken)
        if verdict.taken or not work.left:
            self._failures = 0
        else:
            self._pause()
        if verdict.pause:
            self._not_before = time.monotonic() + verdict.pause

    def _pause(self) -> None:
        self._failures += 1
        self._not_before = time.monotonic() + backoff(self._failures, cap=LONGEST_PAUSE)

    def _fail(self, work: _Round, owed: PendingDelivery, error: EmailIngestionError) -> None:
        """An attempt failed: another one later, or the dead letters."""
        if isinstance(error, PermanentError):
            self._dead_letter(work, owed, "permanent", error)
        elif owed.attempt > self._max_retries:
            self._dead_letter(work, owed, "max_retries", error)
        else:
            self._defer(work, owed, error, _delay(owed, error))

    def _defer(self, work: _Round, owed: PendingDelivery, error: EmailIngestionError, seconds: float) -> None:
        email_id = owed.envelope.email_id
        self._outbox.defer(work.claim, {email_id: seconds})
        del work.left[email_id]
        self._observe(Deferred(email_id, owed.attempt, error, seconds, self._name))

    def _dead_letter(
        self, work: _Round, owed: PendingDelivery, reason: Reason, error: EmailIngestionError | None
    ) -> None:
        email_id = owed.envelope.email_id
        inside = self._content(owed)
        letter = RawMessage(owed.envelope, inside, None if inside is not None else owed.raw_ref, self._name)
        try:
            self._dead_letters.add(
                letter, dead_letter_fields(reason, owed.attempt, error, stack_frames(error), self._instance)
            )
        except TransientError as away:  # Redis: the sink is asked once more before it is
            self._defer(work, owed, away, UNBURIED_SECONDS)
            return
        self._outbox.mark_dead(work.claim, [email_id])
        del work.left[email_id]
        self._observe(DeadLettered(email_id, reason, owed.attempt, error, self._name))

    def _content(self, owed: PendingDelivery) -> bytes | None:
        """The raw bytes when they lie in the database; the blob store's are referred to, and so are damaged ones."""
        try:
            return self._ledger.content(owed.raw_ref)
        except SinkUnavailable:
            raise
        except TransientError:
            return None


def _delay(owed: PendingDelivery, error: EmailIngestionError) -> float:
    asked = error.after if isinstance(error, Retry) else None
    return backoff(owed.attempt) if asked is None else asked
