"""What becomes of a batch: recorded together, or else one by one until every message has its own verdict."""

from __future__ import annotations

import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from email_ingestion.background import BackgroundThread
from email_ingestion.backoff import backoff
from email_ingestion.blobs import BlobStore
from email_ingestion.breaker import Breaker
from email_ingestion.errors import (
    CircuitBreakerError,
    EmailIngestionError,
    ParserDied,
    PermanentError,
    SinkUnavailable,
    TransientError,
)
from email_ingestion.events import (
    DeadLettered,
    Deferred,
    Delivered,
    Observe,
    OwnershipLost,
    SinkDelivered,
    SyntheticHandled,
)
from email_ingestion.ledger.model import LedgerWrite
from email_ingestion.parsing.isolated import IsolatedParser
from email_ingestion.records import Email, RawMessage
from email_ingestion.routing import Decision, Router
from email_ingestion.sinks import Sink
from email_ingestion.stream import Consumer, Delivery, Receipt, SyntheticMessages
from email_ingestion.stream.codec import UnknownVersion
from email_ingestion.stream.dead_letters import Reason, dead_letter_fields


@dataclass(frozen=True, slots=True)
class InProgress:
    """A batch that is being parsed; `opened` is what of it is to be delivered."""

    batch: Sequence[Delivery]
    opened: Sequence[tuple[Delivery, RawMessage]]
    outcomes: Future[list[Email | EmailIngestionError]]
    started: float


class BatchProcessor:
    """Parses, delivers to the database and settles each entry with Redis.

    `further` are the sinks that the database may note as owed, `router` chooses among them for each message, and
    `recorded` is called when something was recorded.
    """

    def __init__(
        self,
        queue: Consumer,
        database: Sink,
        breaker: Breaker,
        blobs: BlobStore,
        parser: IsolatedParser,
        *,
        rehearsals: SyntheticMessages,
        further: tuple[str, ...],
        router: Router,
        recorded: Callable[[], None],
        max_retries: int,
        instance: str,
        observe: Observe,
    ) -> None:
        self._queue = queue
        self._rehearsals = rehearsals
        self._database = database
        self._breaker = breaker
        self._blobs = blobs
        self._parser = parser
        self._further = further
        self._router = router
        self._recorded = recorded
        self._max_retries = max_retries
        self._instance = instance
        self._observe = observe
        self._beside = BackgroundThread("parse")
        self._batch: tuple[Delivery, ...] = ()
        self._revoked: set[str] = set()

    def revoke(self, email_id: str) -> bool:
        """Bury a message that is being handled, as soon as it is out of the hands of a parser or a sink.

        A parser is ended for it; a sink that takes the message after all has delivered it. From any thread; False
        when this worker does not have the message.
        """
        if all(each.email_id != email_id for each in self._batch):
            return False
        self._revoked.add(email_id)
        self._parser.interrupt()
        return True

    def ready(self) -> bool:
        """Whether the database takes mail."""
        return is_available(self._database, self._breaker)

    def retry_after(self) -> float:
        """Seconds until it may be tried again."""
        return self._breaker.retry_after() or 0.1

    def process(self, batch: Sequence[Delivery]) -> None:
        """Bring every entry of the batch to an end, or leave it pending for a later attempt.

        Raises SinkUnavailable, RedisConnectionError or CircuitBreakerError when a sink or Redis is away: no message
        is to blame then, what was not delivered stays pending and has spent no attempt.
        """
        self.finish(self.submit(batch))

    def submit(self, batch: Sequence[Delivery]) -> InProgress:
        """Have the batch parsed, while something else is done; `finish` or `give_back` must follow."""
        self._batch = (*self._batch, *batch)
        started = time.monotonic()
        try:
            opened = [(each, message) for each in batch if (message := self._opened(each))]
        except BaseException:
            self._forget(batch)
            raise
        return self._begun(batch, opened, started)

    def finish(self, begun: InProgress) -> None:
        """Bring to an end what was begun; raises what `settle` does."""
        try:
            self._settle(begun)
        finally:
            self._forget(begun.batch)

    def give_back(self, begun: InProgress) -> None:
        """Leave what was begun to a later attempt: a sink or Redis went away, and nothing of it was tried."""
        with suppress(TransientError):
            self._queue.extend([each.id for each, _ in begun.opened], give_back=True)
        self._forget(begun.batch)

    def _forget(self, batch: Sequence[Delivery]) -> None:
        gone = {each.id for each in batch}
        self._revoked -= {each.email_id for each in batch}
        self._batch = tuple(each for each in self._batch if each.id not in gone)

    def _begun(
        self, batch: Sequence[Delivery], opened: Sequence[tuple[Delivery, RawMessage]], started: float
    ) -> InProgress:
        messages = [message for _, message in opened]
        return InProgress(batch, opened, self._beside.submit(lambda: self._read(messages)), started)

    def _read(self, messages: Sequence[RawMessage]) -> list[Email | EmailIngestionError]:
        """The records, and why there is none of a message whose bytes are not to be had; in the thread beside."""
        found: list[bytes | EmailIngestionError] = [self._bytes_of(message) for message in messages]
        letters = [
            (message.envelope, raw) for message, raw in zip(messages, found, strict=True) if isinstance(raw, bytes)
        ]
        failed = [raw if isinstance(raw, EmailIngestionError) else None for raw in found]
        del found
        records = iter(self._parser.parse(letters) if letters else ())
        return [error or next(records) for error in failed]

    def _bytes_of(self, message: RawMessage) -> bytes | EmailIngestionError:
        if message.raw is not None:
            return message.raw
        try:
            return self._blobs.get(message.raw_ref or "")
        except SinkUnavailable:
            raise
        except EmailIngestionError as error:
            return error

    def _settle(self, begun: InProgress) -> None:
        parcels = self._parsed(begun)
        if not parcels:
            return
        try:
            duplicates = self._record([parcel for _, parcel in parcels])
        except (SinkUnavailable, CircuitBreakerError):
            self._queue.extend([each.id for each, _ in parcels], give_back=True)
            raise
        except (PermanentError, TransientError) as error:
            if len(parcels) == 1:
                self._fail(parcels[0][0], error)
            else:
                self._settle_singly(parcels)
            return
        self._complete([each for each, _ in parcels], duplicates, time.monotonic() - begun.started)

    def _settle_singly(self, parcels: Sequence[tuple[Delivery, LedgerWrite]]) -> None:
        """Find out which message of a failed batch is to blame; the others are delivered."""
        for position, (each, parcel) in enumerate(parcels):
            started = time.monotonic()
            try:
                duplicates = self._record([parcel])
            except (SinkUnavailable, CircuitBreakerError):
                self._queue.extend([left.id for left, _ in parcels[position:]], give_back=True)
                raise
            except (PermanentError, TransientError) as error:
                self._fail(each, error)
                continue
            self._complete([each], duplicates, time.monotonic() - started)

    def _parsed(self, begun: InProgress) -> list[tuple[Delivery, LedgerWrite]]:
        """What came of a batch; when a message ended the parser, each alone, so that only that one fails."""
        try:
            outcomes = begun.outcomes.result()
        except SinkUnavailable:  # the blob store is away, and no message is to blame
            self._queue.extend([each.id for each, _ in begun.opened], give_back=True)
            raise
        except ParserDied as error:
            return self._parsed_singly(begun, error)
        parcels = []
        for (each, message), outcome in zip(begun.opened, outcomes, strict=True):
            if self._buried(each):
                continue
            if isinstance(outcome, EmailIngestionError):
                self._fail(each, outcome)
            else:
                parcels.append((each, self._parcel(message, self._router.decide(outcome))))
        return parcels

    def _parsed_singly(self, begun: InProgress, error: ParserDied) -> list[tuple[Delivery, LedgerWrite]]:
        if len(begun.opened) == 1:
            self._fail(begun.opened[0][0], error)
            return []
        left = [(each, message) for each, message in begun.opened if not self._buried(each)]
        return [parcel for one in left for parcel in self._parsed(self._begun([one[0]], [one], begun.started))]

    def _parcel(self, message: RawMessage, decision: Decision) -> LedgerWrite:
        if message.synthetic:
            return LedgerWrite(decision.email, message.raw or b"", synthetic=True)
        return LedgerWrite(decision.email, message.raw or b"", message.raw_ref, decision.sinks, message.only_sink)

    def _buried(self, each: Delivery) -> bool:
        """Whether an operator revoked it; then it is a dead letter now."""
        if each.email_id not in self._revoked:
            return False
        self._dead_letter(each, "operator", None)
        return True

    def _opened(self, each: Delivery) -> RawMessage | None:
        """The message; None when its entry was settled otherwise."""
        if isinstance(each.unreadable, UnknownVersion):
            self._defer(each, each.unreadable)
            return None
        death = self._death(each)
        if death or not each.message:
            self._dead_letter(each, *(death or ("permanent", None)))
            return None
        return each.message

    def _death(self, each: Delivery) -> tuple[Reason, EmailIngestionError | None] | None:
        """Why an entry is not even tried."""
        if each.attempt > self._max_retries + 1:
            # Nobody counted these attempts as failures, so each of them ended its worker.
            return "poison", None
        if each.unreadable:
            return "permanent", each.unreadable
        if each.message and each.message.only_sink and each.message.only_sink not in self._further:
            return "permanent", PermanentError(
                f"it is for the sink {each.message.only_sink!r} alone: add that to SINKS"
            )
        return None

    def _record(self, parcels: Sequence[LedgerWrite]) -> set[str]:
        """Hand parcels to the database; returns the identities that it had already."""
        name = self._database.name
        try:
            duplicates = self._breaker.run(lambda: set(self._database.deliver(parcels) or ()))
        except EmailIngestionError:
            self._observe(SinkDelivered(name, "failed", len(parcels)))
            raise
        except Exception as error:
            self._observe(SinkDelivered(name, "failed", len(parcels)))
            raise TransientError(f"sink {name} failed: {type(error).__name__}") from error
        mail = sum(not parcel.synthetic for parcel in parcels)
        self._observe(SinkDelivered(name, "delivered", mail - len(duplicates)))
        if duplicates:
            self._observe(SinkDelivered(name, "duplicate", len(duplicates)))
        self._recorded()
        return duplicates

    def _complete(self, done: Sequence[Delivery], duplicates: set[str], seconds: float) -> None:
        lost = self._queue.ack(done)
        if lost:
            self._observe(OwnershipLost(len(lost)))
        now = datetime.now(UTC)
        kept = [each for each in done if each not in lost]
        self._acknowledge([each for each in kept if each.synthetic], delivered=True)
        for each in kept:
            if each.message and not each.synthetic:
                self._observe(
                    Delivered(
                        each.email_id,
                        each.attempt,
                        each.email_id in duplicates,
                        seconds / len(done),
                        each.queue_wait,
                        (now - each.message.envelope.internaldate).total_seconds(),
                    )
                )

    def _acknowledge(self, done: Sequence[Delivery], *, delivered: bool) -> None:
        """Tell whoever rehearses; a receipt that Redis does not take is one that he misses."""
        runs: defaultdict[str, list[Receipt]] = defaultdict(list)
        for each in done:
            if each.message and each.synthetic:
                receipt = Receipt(each.message.envelope.uid, delivered, each.queue_wait, each.age())
                runs[each.synthetic].append(receipt)
        for run, receipts in runs.items():
            self._observe(SyntheticHandled(len(receipts), delivered))
            with suppress(TransientError):
                self._rehearsals.add_receipts(run, receipts)

    def _fail(self, each: Delivery, error: EmailIngestionError) -> None:
        """An attempt failed: another one later, or the dead letters."""
        if self._buried(each):
            return
        if isinstance(error, PermanentError):
            self._dead_letter(each, "permanent", error)
        elif each.attempt > self._max_retries:
            self._dead_letter(each, "poison" if isinstance(error, ParserDied) else "max_retries", error)
        else:
            self._defer(each, error)

    def _defer(self, each: Delivery, error: EmailIngestionError) -> None:
        self._queue.extend([each.id])
        self._observe(Deferred(each.email_id, each.attempt, error, backoff(each.attempt)))

    def _dead_letter(self, each: Delivery, reason: Reason, error: EmailIngestionError | None) -> None:
        if each.synthetic:  # nobody would miss it: its end is told, and nothing of it is kept
            self._queue.ack([each])
            self._acknowledge([each], delivered=False)
        elif self._queue.dead_letter(
            each, dead_letter_fields(reason, each.attempt, error, stack_frames(error), self._instance)
        ):
            self._observe(DeadLettered(each.email_id, reason, each.attempt, error))


def is_available(sink: Sink, breaker: Breaker) -> bool:
    """Whether a sink takes mail; one whose breaker is open is pinged when a trial is due, not tried with mail."""
    while not breaker.closed:
        if breaker.retry_after() > 0:
            return False
        try:
            breaker.run(sink.ping)
        except TransientError:
            return False
    return True


def stack_frames(error: BaseException | None) -> str:
    """The stack of an error and of what caused it, without their texts: a foreign one may quote the message."""
    if error is None:
        return ""
    stack = "".join(traceback.format_tb(error.__traceback__))
    return f"{stack_frames(error.__cause__)}{stack}{type(error).__name__}\n"
