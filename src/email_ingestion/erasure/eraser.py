"""Erases the messages of a choice wherever they are kept; may be killed anywhere, and given again.

What is found in Redis and in the database is erased in batches: tombstones first, then the files of the sinks, then the
rows. Redis is swept at the end by the tombstones, for an entry may have moved meanwhile, and the contents go when
nothing refers to them any more. A worker that has a message just now finds its tombstone when it records it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Protocol, TypeVar

from email_ingestion.blobs import BlobStore, reference
from email_ingestion.erasure.mail_selector import ADDRESS_FIELDS, MailSelector, Selector
from email_ingestion.erasure.retention import Holds
from email_ingestion.erasure.tombstones import TombstoneFile
from email_ingestion.errors import EmailIngestionError, OperationFailed, PermanentError, SinkUnavailable, TransientError
from email_ingestion.identity import tombstone
from email_ingestion.ledger.model import ErasableMessage, ErasureNotice, Location, content_identity, place_of
from email_ingestion.parsing import addresses_of
from email_ingestion.records import Envelope
from email_ingestion.stream.queue_erasure import QueuedMessage, QueueErasure

if TYPE_CHECKING:
    from email_ingestion.ledger.store import Ledger

T = TypeVar("T")

BATCH = 200  # messages in one transaction
# A content is stored before the row or the entry that refers to it is written: while processes run, one that was stored
# so lately may be about to be referred to.
GRACE_SECONDS = 30.0
HANDOVER_SECONDS = 60.0  # for which a sink that has a message just now is waited for
POLL_SECONDS = 0.5
FEED_TIME = timedelta(days=1)  # for workers to tell of an erasure, after which this tells of it


class NoticeSink(Protocol):
    """A sink whose receiver is told of erasures."""

    def tell_erased(self, notice: ErasureNotice) -> None:
        """Tell it. Raises PermanentError when it refuses that for good, TransientError when it may take it later."""


class ErasingSink(Protocol):
    """A sink whose destination can remove messages."""

    def erase(self, messages: Sequence[ErasableMessage]) -> int:
        """Remove what the destination keeps of these messages; return of how many it had anything."""


@dataclass
class ErasureSummary:
    """What a run found and removed; it grows while the run goes on."""

    matched: int = 0
    held: int = 0  # of those that matched: a hold keeps them
    by_account: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)  # by place
    unreadable: list[str] = field(default_factory=list)  # entries of Redis that could not be looked at, and why
    busy_sinks: set[str] = field(default_factory=set)  # that had a message of these for too long
    failed_sinks: dict[str, str] = field(default_factory=dict)  # why, by sink
    tombstones: int = 0
    untold: dict[str, str] = field(default_factory=dict)  # why, by sink
    unscrubbed: list[str] = field(default_factory=list)  # what still has bytes of what was erased

    @property
    def is_whole(self) -> bool:
        """Whether all that no hold keeps was looked at and erased."""
        return not (self.unreadable or self.failed_sinks or self.busy_sinks)

    def open_points(self) -> Iterator[str]:
        """Yield a sentence for whatever was not erased, or could not be looked at."""
        if self.held:
            yield f"{self.held:,} stay, for a hold keeps them: email-ingestion retention hold list"
        for reason in self.unreadable:
            yield f"could not be looked at: {reason}"
        for name, reason in self.failed_sinks.items():
            yield f"sink {name}: nothing was erased there: {reason}"
        for name in sorted(self.busy_sinks):
            yield f"sink {name} was handling one of the messages all the time: it may have it; give the command again"
        for name, reason in self.untold.items():
            yield f"sink {name}: {reason}"
        yield from self.unscrubbed


class Eraser:
    """One run. `sinks` are those whose files it can remove; `processes_run` tells whether anybody stores contents."""

    def __init__(
        self,
        run: str,
        ledger: Ledger,
        blobs: BlobStore,
        queue: QueueErasure,
        tombstones: TombstoneFile,
        *,
        sinks: Mapping[str, ErasingSink],
        receivers: Mapping[str, NoticeSink],
        processes_run: Callable[[], bool],
        told_by_feed: Collection[str] = (),
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        """`told_by_feed` are the sinks that workers tell of an erasure, behind the earlier changes of the message."""
        self.name = run
        self._ledger = ledger
        self._erasure, self._tokens = ledger.erasure, ledger.api_tokens
        self._blobs = blobs
        self._queue = queue
        self._file = tombstones
        self._sinks = sinks
        self._receivers = receivers
        self._told_by_feed = told_by_feed
        self._processes_run = processes_run
        self._pause = pause
        self._erased: set[str] = set()  # tombstones of this run
        self._held: set[str] = set()  # identities that a hold keeps
        self.summary = ErasureSummary()

    def preview(self, selector: Selector) -> Iterator[int]:
        """Count what `run` would find, by place, and change nothing; yield the number of messages, batch by batch."""
        identities: set[str] = set()
        for name, message in self._find_queued(selector):
            if not message or self._free([message]):
                self.summary.removed[name] += 1
            if message and message.email_id not in identities:
                identities.add(message.email_id)
                self._count(message)
        for batch in _batches(self._find_delivered(selector)):
            self.summary.removed["messages"] += len(self._free(batch))
            for message in batch:
                if message.email_id not in identities:
                    self._count(message)
            yield len(batch)

    def forget_preview(self) -> None:
        """Begin to count anew."""
        self.summary = ErasureSummary(failed_sinks=self.summary.failed_sinks)

    def erase(self, selector: Selector) -> Iterator[int]:
        """Erase; yield the number of messages, batch by batch.

        Raises SinkUnavailable, RedisConnectionError, CircuitBreakerError and ConfigurationError: what was not erased
        then is found when the command is given again.
        """
        self.share_tombstones()
        order = self._file.begin(selector.describe())
        foreign: set[str] = set()
        queued: dict[str, ErasableMessage] = {}
        for _, message in self._find_queued(selector, foreign.add):
            if message:
                queued[message.email_id] = message
        seen: set[str] = set()
        for batch in _batches(self._with_first(queued, seen, self._find_delivered(selector))):
            for message in batch:
                self._count(message)
            if free := self._free(batch):
                self._erase_batch(free)
            yield len(batch)
        self.summary.removed["dead_letters"] += self._queue.remove_dead_letters(sorted(foreign)) if foreign else 0
        self.summary.matched += len(foreign)
        self._finish()
        if self.summary.is_whole:
            self._file.end(order)

    def reapply(self) -> Iterator[int]:
        """Erase again whatever has a tombstone: after a restore, after older code ran; yield how many were looked at.

        Tokens of the API that were revoked are revoked again. Raises as `erase` does, and OperationFailed when the file
        of tombstones is damaged.
        """
        known = self.share_tombstones()
        self._tokens.revoke_again(known, "a tombstone")
        if known:
            self._erased |= known
            for batch in _batches(self._erasure.identities(), 2_000):
                found = [each for each, *names in batch if not known.isdisjoint(_tombstones(each, *names))]
                for start in range(0, len(found), BATCH):
                    self._erase_again(found[start : start + BATCH])
                yield len(batch)
        self._finish()
        self._file.reapplied()

    def clean_up(self) -> Iterator[int]:
        """Remove the contents that an erasure, or a worker that met its tombstones, has left."""
        self._remove_contents()
        self._tell()
        yield 0

    def share_tombstones(self) -> set[str]:
        """Give the database those of the file, and the file those of the database; return all of them.

        Raises OperationFailed when the file is damaged: what it no longer tells cannot be kept from coming back.
        """
        found = self._file.read()
        if found.breaks:
            raise OperationFailed(
                f"{found.breaks[0]}: bring {self._file.path} back from a backup (`tombstones.jsonl` in the archive)"
            )
        there = set(self._erasure.tombstones())
        self._erasure.add_tombstones(found.tombstones - there)
        missing = sorted(there - found.tombstones)
        if missing:
            self._file.add_missing(missing, self.name)
        return there | found.tombstones

    # -- what is found

    def _find_queued(
        self, selector: Selector, on_foreign: Callable[[str], object] = lambda _: None
    ) -> Iterator[tuple[str, ErasableMessage | None]]:
        """Yield place and message of the entries of Redis that are meant; None for a message without an identity."""
        seen: set[str] = set()
        for entry in self._queue.messages():
            name = "dead_letters" if entry.dead else "stream"
            if (key := f"{name} {entry.id}") in seen:
                continue
            seen.add(key)
            try:
                if entry.envelope is None:
                    facts = (entry.account, entry.added, entry.head)
                    if entry.dead and selector.matches_unreadable(*facts) and not self._holds().keep_unreadable(*facts):
                        on_foreign(entry.id)
                        yield name, None
                elif selector.matches_raw(entry.envelope, partial(self._head, entry)):
                    yield name, self._queued_message(entry, entry.envelope)
            except (PermanentError, TransientError) as error:
                if isinstance(error, SinkUnavailable):
                    raise
                self.summary.unreadable.append(f"{name} {entry.id}: {error}")

    def _queued_message(self, entry: QueuedMessage, envelope: Envelope) -> ErasableMessage:
        """Return the message of an entry, with its addresses where a hold asks for them."""
        headers: tuple[tuple[str, str], ...] = ()
        if self._holds().need_addresses:
            head = self._head(entry)
            headers = tuple((name, each) for name in ADDRESS_FIELDS for each in addresses_of(head, (name,)))
        return ErasableMessage(envelope, entry.raw_ref, headers=headers)

    def _free(self, batch: Sequence[ErasableMessage]) -> list[ErasableMessage]:
        """Return the messages that no hold keeps, by the holds of this moment; count the others."""
        holds = self._holds()
        kept = {message.email_id for message in batch if holds.keep(message)}
        self._held |= kept
        self.summary.held = len(self._held)
        return [message for message in batch if message.email_id not in kept]

    def _holds(self) -> Holds:
        return Holds(self._erasure.holds())

    def _head(self, entry: QueuedMessage) -> bytes:
        if not entry.raw_ref:
            return entry.head()
        inside = self._ledger.content(entry.raw_ref)
        return inside if inside is not None else next(self._blobs.chunks(entry.raw_ref), b"")

    def _find_delivered(self, selector: Selector) -> Iterator[ErasableMessage]:
        return (each for each in self._erasure.find(selector.choice()) if selector.matches_stored(each))

    def _with_first(
        self, queued: dict[str, ErasableMessage], seen: set[str], delivered: Iterable[ErasableMessage]
    ) -> Iterator[ErasableMessage]:
        """Yield the delivered messages, then those that are only queued: a delivered one is known better."""
        for message in delivered:
            seen.add(message.email_id)
            yield message
        yield from (message for email_id, message in queued.items() if email_id not in seen)

    def _count(self, message: ErasableMessage) -> None:
        self.summary.matched += 1
        self.summary.by_account[message.envelope.account] += 1

    # -- what is done

    def _erase_batch(self, batch: Sequence[ErasableMessage]) -> None:
        twins = self._erasure.twins(batch)
        tombstones = {each for message in batch for each in _tombstones_of(message, twins)}
        self._file.append(tombstones, self.name)
        self._erased |= tombstones
        self.summary.tombstones += len(tombstones)
        self._erase_rows(batch, tombstones)

    def _erase_again(self, email_ids: Sequence[str]) -> None:
        batch = list(self._erasure.find(MailSelector(email_ids=tuple(email_ids)).choice()))
        for message in batch:
            self._count(message)
        self._erase_rows(batch, set())

    def _erase_rows(self, batch: Sequence[ErasableMessage], tombstones: set[str]) -> None:
        self._await_sinks({message.email_id for message in batch})
        for name, sink in self._sinks.items():
            try:
                self.summary.removed[f"sink {name}"] += sink.erase(batch)
            except EmailIngestionError as error:
                self.summary.failed_sinks[name] = str(error)
        rows = self._erasure.erase(batch, tombstones, {*self._receivers, *self._told_by_feed})
        removed = self.summary.removed
        removed["messages"] += rows.messages
        removed["attachments"] += rows.attachments
        for table, count in rows.further.items():
            removed[table] += count
        for message in batch:
            for at in (_first_location(message), *message.locations):
                place = (message.envelope.account, at.mailbox, at.uidvalidity, at.uid)
                removed["quarantine"] += self._queue.forget_place(*place)

    def _await_sinks(self, email_ids: set[str]) -> None:
        """Wait until no sink has one of these messages in its hands: it would write it after its erasure."""
        end = time.monotonic() + HANDOVER_SECONDS
        while busy := self._erasure.withdraw_deliveries(email_ids):
            if time.monotonic() > end:
                self.summary.busy_sinks |= busy
                return
            self._pause(POLL_SECONDS)

    def _finish(self) -> None:
        self.summary.removed.update(self._queue.sweep(self._is_erased))
        self._remove_contents()
        self._tell()

    def _tell(self) -> None:
        """Tell the receivers, also of earlier erasures; what one does not take now is for the next run.

        Of what workers tell there remains what they had not told when the feed was lost, or the setting was changed.
        """
        for name, sink in self._receivers.items():
            before = datetime.now(UTC) - FEED_TIME if name in self._told_by_feed else None
            while notices := self._erasure.pending_notices(name, before=before):
                for notice in notices:
                    try:
                        sink.tell_erased(notice)
                        self.summary.removed[f"told {name}"] += 1
                    except PermanentError as error:
                        self.summary.untold[name] = f"it refuses to be told of an erasure: {error}"
                    except TransientError as error:
                        self.summary.untold[name] = f"it is told of the erasure later, by the next run: {error}"
                        return
                    self._erasure.forget_notice(notice)

    def _is_erased(self, email_id: str, by_content: str) -> bool:
        return tombstone(email_id) in self._erased or (bool(by_content) and tombstone(by_content) in self._erased)

    def _remove_contents(self) -> None:
        """Remove the contents that nothing refers to, those of an erasure that was killed too."""
        while pending := self._erasure.pending_contents():
            in_redis = self._queue.references()
            removed, left = self._erasure.remove_contents(pending, in_redis)
            self.summary.removed["contents"] += removed
            young = self._remove_blobs(left)
            if not young:
                continue
            self._pause(POLL_SECONDS)

    def _remove_blobs(self, sha256s: Iterable[str]) -> bool:
        """Remove contents from the blob store; return whether some were stored too lately to be sure."""
        young, gone = False, []
        for sha256 in sha256s:
            before = time.time() - GRACE_SECONDS if self._processes_run() else time.time() + 1
            removed = self._blobs.erase(reference(sha256), before)
            if removed is False:
                young = True
            else:
                self.summary.removed["blobs"] += bool(removed)
                gone.append(sha256)
        self._erasure.forget_contents(gone)
        return young


def _tombstones_of(message: ErasableMessage, twins: set[str]) -> Iterator[str]:
    envelope = message.envelope
    yield tombstone(message.email_id)
    if (by_content := content_identity(envelope)) not in twins:
        yield tombstone(by_content)
    if envelope.gm_msgid is None:
        for at in (_first_location(message), *message.locations):
            yield tombstone(place_of(envelope, at))


def _tombstones(email_id: str, account: str, sha256: str) -> set[str]:
    return {tombstone(email_id), tombstone(f"{account}:sha256:{sha256}")}


def _first_location(message: ErasableMessage) -> Location:
    envelope = message.envelope
    return Location(envelope.mailbox, envelope.uidvalidity, envelope.uid)


def _batches(items: Iterable[T], size: int = BATCH) -> Iterator[list[T]]:
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch
