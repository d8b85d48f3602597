"""From a batch of the stream to the database: parse, record and ack it; message by message where the batch fails.

A message that takes long to parse leaves its batch and goes on in the slow lane; it is settled like a batch of one.
A message ends in one of four ways: recorded and acked, dead-lettered, pending for another attempt, or given back
without an attempt spent because the database, the blob store, Redis or the parser's process is away.
"""

from __future__ import annotations

import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

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
    DefectsFound,
    Deferred,
    Delivered,
    LeftToNewerRelease,
    Observe,
    OwnershipLost,
    SinkDelivered,
    SlowMessageFound,
    SyntheticHandled,
)
from email_ingestion.ledger.model import LedgerWrite
from email_ingestion.parsing.isolated import IsolatedParser
from email_ingestion.records import Email, RawMessage
from email_ingestion.routing import Decision, Router
from email_ingestion.sinks import Sink, ping_sink
from email_ingestion.stream import Consumer, Delivery, Receipt, SyntheticMessages
from email_ingestion.stream.codec import UnknownVersion
from email_ingestion.stream.dead_letters import Reason, dead_letter_fields
from email_ingestion.worker.parse_stage import Parsed, ParseStage
from email_ingestion.worker.slow_lane import SlowLane

MAX_KNOWN_SLOW = 10_000  # identities kept; above it they are found out anew


@dataclass(frozen=True, slots=True)
class InProgress:
    """A batch that is being parsed; `readable` are its deliveries with a message to record."""

    batch: Sequence[Delivery]
    readable: Sequence[tuple[Delivery, RawMessage]]
    emails: Future[list[Parsed]]
    started: float


class BatchProcessor:
    """Parses batches, records them in the database and settles each entry with Redis.

    `further_sinks` are those that the database may note deliveries for, `router` chooses among them for each message,
    and `on_recorded` is called when messages were recorded.
    """

    def __init__(
        self,
        consumer: Consumer,
        database: Sink,
        breaker: Breaker,
        blobs: BlobStore,
        parser: IsolatedParser,
        *,
        synthetic: SyntheticMessages,
        further_sinks: tuple[str, ...],
        router: Router,
        on_recorded: Callable[[], None],
        max_retries: int,
        instance: str,
        observe: Observe,
        blocked: Callable[[str], str | None] = lambda _address: None,
    ) -> None:
        """`blocked` returns the pattern by which a sender's mail is put aside, None for most."""
        self._blocked = blocked
        self._consumer = consumer
        self._synthetic = synthetic
        self._database = database
        self._breaker = breaker
        self._parsing = ParseStage(parser, blobs, breaker)
        self._further_sinks = further_sinks
        self._router = router
        self._on_recorded = on_recorded
        self._max_retries = max_retries
        self._instance = instance
        self._observe = observe
        self._slow_lane = SlowLane(parser.twin(), self._parsing.parse_slowly)
        self._known_slow: set[str] = set()  # messages that took long to parse, by identity
        self._in_progress: tuple[Delivery, ...] = ()
        self._unsettled: set[str] = set()  # entries in progress that were neither acked nor dead-lettered nor deferred
        self._revoked: set[str] = set()

    def revoke(self, email_id: str) -> bool:
        """Dead-letter a message that is being processed, as soon as the parser or the database lets go of it.

        The parser is ended for it; a message that the database takes after all is delivered. Thread-safe; returns
        False when this worker does not have the message.
        """
        if all(delivery.email_id != email_id for delivery in self._in_progress):
            return False
        self._revoked.add(email_id)
        if not self._slow_lane.interrupt(email_id):
            self._parsing.interrupt()
        return True

    @property
    def slow_entries(self) -> frozenset[str]:
        """The entries in the slow lane, whose lease must be extended; thread-safe."""
        return self._slow_lane.entry_ids

    def attend_slow_lane(self) -> None:
        """Settle the message that the slow lane has parsed, if there is one. Raises like `finish`."""
        for email_id in tuple(self._revoked):  # again: its parser may not have been there to be ended
            self._slow_lane.interrupt(email_id)
        if done := self._slow_lane.take_parsed():
            self._known_slow.discard(done.delivery.email_id)
            self.finish(InProgress([done.delivery], [(done.delivery, done.message)], done.parsed, done.started))

    def leave_slow_lane(self) -> None:
        """Leave what is in the slow lane to a later attempt, by whichever worker."""
        if left := self._slow_lane.leave():
            with suppress(TransientError):
                self._consumer.release([delivery.id for delivery in left])
            self._forget(left)

    def ready(self) -> bool:
        """Whether the database takes mail. Raises ParserUnavailable as long as the parser parses nothing."""
        if not is_available(self._database, self._breaker):
            return False
        self._parsing.ensure_ready()
        return True

    def retry_after(self) -> float:
        """Return the seconds until the database may be tried again."""
        return self._breaker.retry_after() or 0.1

    def submit(self, batch: Sequence[Delivery]) -> InProgress:
        """Have the batch parsed in another thread; `finish` or `give_back` must follow."""
        self._in_progress = (*self._in_progress, *batch)
        self._unsettled |= {delivery.id for delivery in batch}
        started = time.monotonic()
        try:
            readable = [(delivery, message) for delivery in batch if (message := self._readable(delivery))]
            readable = [item for item in readable if not self._is_slow(*item)]
            return self._parse_later(batch, readable, started)
        except BaseException:
            self._give_back_unsettled(batch)
            self._forget(batch)
            raise

    def finish(self, work: InProgress) -> None:
        """Settle every entry of a submitted batch, or leave it pending for a later attempt.

        Raises SinkUnavailable, RedisConnectionError or CircuitBreakerError when a sink or Redis is away: no message is
        at fault then, and the messages that were not recorded stay pending and have spent no attempt.
        """
        try:
            self._settle(work)
        except TransientError:
            self._give_back_unsettled(work.batch)
            raise
        finally:
            self._forget(work.batch)

    def give_back(self, work: InProgress) -> None:
        """Leave a submitted batch to a later attempt: a sink or Redis went away, and none of it was tried."""
        self._give_back_unsettled(work.batch)
        self._forget(work.batch)

    def _give_back_unsettled(self, batch: Sequence[Delivery]) -> None:
        """Take attempts back; where Redis does not do it now, the consumer remembers that they were none."""
        slow = self._slow_lane.entry_ids
        ids = [delivery.id for delivery in batch if delivery.id in self._unsettled and delivery.id not in slow]
        if ids:
            with suppress(TransientError):
                self._consumer.extend(ids, give_back=True)

    def _forget(self, batch: Sequence[Delivery]) -> None:
        ended = [delivery for delivery in batch if delivery.id not in self._slow_lane.entry_ids]
        ids = {delivery.id for delivery in ended}
        self._unsettled -= ids
        self._revoked -= {delivery.email_id for delivery in ended}
        self._in_progress = tuple(delivery for delivery in self._in_progress if delivery.id not in ids)

    def _parse_later(
        self, batch: Sequence[Delivery], readable: Sequence[tuple[Delivery, RawMessage]], started: float
    ) -> InProgress:
        return InProgress(batch, readable, self._parsing.submit([message for _, message in readable]), started)

    def _settle(self, work: InProgress) -> None:
        writes = self._parsed(work)
        if not writes:
            return
        try:
            duplicates = self._record([write for _, write in writes])
        except (SinkUnavailable, CircuitBreakerError):
            raise
        except (PermanentError, TransientError) as error:
            if len(writes) == 1:
                self._fail(writes[0][0], error)
            else:
                self._settle_singly(writes)
            return
        self._ack(writes, duplicates, time.monotonic() - work.started)
        self._announce_defects([write for _, write in writes], duplicates)

    def _settle_singly(self, writes: Sequence[tuple[Delivery, LedgerWrite]]) -> None:
        """Find the message at fault in a failed batch; the others are recorded."""
        for delivery, write in writes:
            started = time.monotonic()
            try:
                duplicates = self._record([write])
            except (SinkUnavailable, CircuitBreakerError):
                raise
            except (PermanentError, TransientError) as error:
                self._fail(delivery, error)
                continue
            self._ack([(delivery, write)], duplicates, time.monotonic() - started)
            self._announce_defects([write], duplicates)

    def _parsed(self, work: InProgress) -> list[tuple[Delivery, LedgerWrite]]:
        """Return what is to be recorded; when a message ended the parser, parse each alone, so that only it fails."""
        try:
            emails = self._parsing.result(work.emails)
        except ParserDied as error:
            return self._parsed_singly(work, error)
        writes = []
        for (delivery, message), email in zip(work.readable, emails, strict=True):
            if self._dead_letter_revoked(delivery) or self._dead_letter_blocked(delivery, email):
                continue
            if isinstance(email, EmailIngestionError):
                self._fail(delivery, email)
            elif email is None:
                self._move_into_slow_lane(delivery, message)
            else:
                whole = replace(email, defects=message.defects + email.defects) if message.defects else email
                writes.append((delivery, _ledger_write(message, self._router.decide(whole))))
        return writes

    def _parsed_singly(self, work: InProgress, error: ParserDied) -> list[tuple[Delivery, LedgerWrite]]:
        if len(work.readable) == 1:
            self._fail(work.readable[0][0], error)
            return []
        left = [item for item in work.readable if not self._dead_letter_revoked(item[0])]
        return [write for item in left for write in self._parsed(self._parse_later([item[0]], [item], work.started))]

    def _is_slow(self, delivery: Delivery, message: RawMessage) -> bool:
        """Whether it took long before; it has left the flow then, which parses no message of that kind twice."""
        if delivery.email_id not in self._known_slow:
            return False
        if not self._slow_lane.add(delivery, message):
            self._put_aside(delivery)
        return True

    def _move_into_slow_lane(self, delivery: Delivery, message: RawMessage) -> None:
        if len(self._known_slow) >= MAX_KNOWN_SLOW:
            self._known_slow.clear()
        self._known_slow.add(delivery.email_id)
        self._observe(SlowMessageFound(delivery.email_id))
        if not self._slow_lane.add(delivery, message):
            self._put_aside(delivery)

    def _put_aside(self, delivery: Delivery) -> None:
        """Let it come again when the slow lane may have room: at once, it would keep the flow busy."""
        self._consumer.put_aside(delivery)
        self._unsettled.discard(delivery.id)

    def _dead_letter_revoked(self, delivery: Delivery) -> bool:
        """Whether an operator revoked the message; if so, dead-letter it."""
        if delivery.email_id not in self._revoked:
            return False
        self._dead_letter(delivery, "operator", None)
        return True

    def _dead_letter_blocked(self, delivery: Delivery, email: Email | EmailIngestionError | None) -> bool:
        """Whether an operator has the mail of this sender put aside for a while; if so, dead-letter it."""
        if not isinstance(email, Email) or email.from_ is None or delivery.synthetic:
            return False
        pattern = self._blocked(email.from_.addr)
        if pattern is None:
            return False
        self._dead_letter(delivery, "operator", PermanentError("an operator has the mail of its sender put aside"))
        return True

    def _readable(self, delivery: Delivery) -> RawMessage | None:
        """Return the message to record; None when its entry was settled otherwise."""
        if isinstance(delivery.unreadable, UnknownVersion):
            self._consumer.leave_to_newer(delivery)
            self._unsettled.discard(delivery.id)
            self._observe(LeftToNewerRelease(delivery.email_id, delivery.unreadable))
            return None
        refusal = self._refusal(delivery)
        if refusal or not delivery.message:
            self._dead_letter(delivery, *(refusal or ("permanent", None)))
            return None
        return delivery.message

    def _refusal(self, delivery: Delivery) -> tuple[Reason, EmailIngestionError | None] | None:
        """Return why an entry is not even tried, None when it is."""
        if delivery.attempt > self._max_retries + 1 and not self._is_recorded(delivery):
            # These attempts were not counted as failures, so each of them ended its worker.
            return "poison", None
        if delivery.unreadable:
            return "malformed", delivery.unreadable
        if delivery.message and delivery.message.only_sink and delivery.message.only_sink not in self._further_sinks:
            return "permanent", PermanentError(
                f"it is for the sink {delivery.message.only_sink!r} alone: add that to SINKS"
            )
        return None

    def _is_recorded(self, delivery: Delivery) -> bool:
        """Whether the database has the message: then only its acks failed. Raises SinkUnavailable."""
        ledger = getattr(self._database, "ledger", None)
        return ledger is not None and bool(ledger.known_ids([delivery.email_id]))

    def _record(self, writes: Sequence[LedgerWrite]) -> set[str]:
        """Write messages to the database; return the identities that it had already."""
        name = self._database.name
        try:
            duplicates = self._breaker.run(lambda: set(self._database.deliver(writes) or ()))
        except EmailIngestionError:
            self._observe(SinkDelivered(name, "failed", len(writes)))
            raise
        except Exception as error:
            self._observe(SinkDelivered(name, "failed", len(writes)))
            raise TransientError(f"sink {name} failed: {type(error).__name__}") from error
        mail = sum(not write.synthetic for write in writes)
        self._observe(SinkDelivered(name, "delivered", mail - len(duplicates)))
        if duplicates:
            self._observe(SinkDelivered(name, "duplicate", len(duplicates)))
        self._on_recorded()
        return duplicates

    def _ack(self, writes: Sequence[tuple[Delivery, LedgerWrite]], duplicates: set[str], seconds: float) -> None:
        recorded = [delivery for delivery, _ in writes]
        lost = self._consumer.ack(recorded)
        self._unsettled -= {delivery.id for delivery in recorded}
        if lost:
            self._observe(OwnershipLost(len(lost)))
        now = datetime.now(UTC)
        acked = [(delivery, write.email) for delivery, write in writes if delivery not in lost]
        self._add_receipts([delivery for delivery, _ in acked if delivery.synthetic], delivered=True)
        for delivery, email in acked:
            if delivery.message and not delivery.synthetic:
                self._observe(
                    Delivered(
                        delivery.email_id,
                        delivery.attempt,
                        delivery.email_id in duplicates,
                        seconds / len(recorded),
                        delivery.queue_wait,
                        (now - delivery.message.envelope.internaldate).total_seconds(),
                        delivery.message.history,
                        email.priority,
                        email.tags,
                    )
                )

    def _announce_defects(self, writes: Sequence[LedgerWrite], duplicates: set[str]) -> None:
        """Announce what the delivered messages had to be repaired for; a message counts once for each kind."""
        defects = [
            write.email.defects
            for write in writes
            if write.email.defects and not write.synthetic and write.email.email_id not in duplicates
        ]
        if defects:
            kinds = Counter(kind for each in defects for kind in {code.partition(":")[0] for code in each})
            self._observe(DefectsFound(len(defects), kinds))

    def _add_receipts(self, settled: Sequence[Delivery], *, delivered: bool) -> None:
        """Write receipts of synthetic messages; one that Redis does not take is missing at their sender."""
        runs: defaultdict[str, list[Receipt]] = defaultdict(list)
        for delivery in settled:
            if delivery.message and delivery.synthetic:
                receipt = Receipt(delivery.message.envelope.uid, delivered, delivery.queue_wait, delivery.age())
                runs[delivery.synthetic].append(receipt)
        for run, receipts in runs.items():
            self._observe(SyntheticHandled(len(receipts), delivered))
            with suppress(TransientError):
                self._synthetic.add_receipts(run, receipts)

    def _fail(self, delivery: Delivery, error: EmailIngestionError) -> None:
        """Schedule another attempt, or dead-letter the message."""
        if self._dead_letter_revoked(delivery):
            return
        if isinstance(error, PermanentError):
            self._dead_letter(delivery, "permanent", error)
        elif delivery.attempt > self._max_retries:
            self._dead_letter(delivery, "poison" if isinstance(error, ParserDied) else "max_retries", error)
        else:
            self._defer(delivery, error)

    def _defer(self, delivery: Delivery, error: EmailIngestionError) -> None:
        self._consumer.extend([delivery.id])
        self._unsettled.discard(delivery.id)
        self._observe(Deferred(delivery.email_id, delivery.attempt, error, backoff(delivery.attempt)))

    def _dead_letter(self, delivery: Delivery, reason: Reason, error: EmailIngestionError | None) -> None:
        if delivery.synthetic:  # nobody's mail: it gets a receipt, and nothing of it is kept
            self._consumer.ack([delivery])
            self._unsettled.discard(delivery.id)
            self._add_receipts([delivery], delivered=False)
            return
        fields = dead_letter_fields(reason, delivery.attempt, error, stack_frames(error), self._instance)
        moved = self._consumer.dead_letter(delivery, fields)
        self._unsettled.discard(delivery.id)
        if moved:
            self._observe(DeadLettered(delivery.email_id, reason, delivery.attempt, error))


def _ledger_write(message: RawMessage, decision: Decision) -> LedgerWrite:
    if message.synthetic:
        return LedgerWrite(decision.email, message.raw or b"", synthetic=True)
    return LedgerWrite(
        decision.email,
        message.raw or b"",
        message.raw_ref,
        decision.sinks,
        message.only_sink,
        retention_days=decision.retention_days,
    )


def is_available(sink: Sink, breaker: Breaker) -> bool:
    """Whether a sink takes mail; one whose breaker is open is pinged when a probe is due, not tried with mail."""
    while not breaker.closed:
        if breaker.retry_after() > 0:
            return False
        try:
            breaker.run(partial(ping_sink, sink))
        except TransientError:
            return False
    return True


def stack_frames(error: BaseException | None) -> str:
    """Return the stacks of an error and its causes without their texts: a foreign text may quote the message."""
    if error is None:
        return ""
    if isinstance(frames := getattr(error, "frames", None), str):  # of another process
        return frames
    stack = "".join(traceback.format_tb(error.__traceback__))
    return f"{stack_frames(error.__cause__)}{stack}{type(error).__name__}\n"
