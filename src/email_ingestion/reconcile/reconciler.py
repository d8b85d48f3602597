r"""Compares one mailbox with what became of its mail, window by window, and fills the gaps it finds.

UIDs (≤ 5,000) ─▶ place in the ledger? ─no─▶ summaries (≤ 500) ─▶ compare ─missing─▶ bodies (≤ 1 MB) ─▶ append
                        │                 ▲                           └─ delivered, queued, dead, excluded
                        └─ yes ─▶ same? ──┴ no
                                   └─ yes: delivered

A place is no identity: size and date of what is listed are compared with what was recorded (`producer.place_evidence`),
of large mailboxes only for the newest messages and a part of the others each time. A few are read whole, to see
whether the server still has the same bytes. Nothing larger than a window is ever held. Bodies are fetched to fill a
gap, and where only they tell the identity.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from email_ingestion.events import AlteredOnServer, Observe, Published, Reconciled
from email_ingestion.ledger.model import Location
from email_ingestion.mailbox import ImapMailbox, MessageSummary
from email_ingestion.mailbox.imap_errors import MessagesRefused
from email_ingestion.mailbox.imap_mailbox import SelectedMailbox
from email_ingestion.mailbox.uid_listing import LAST_UID, MAX_FETCH_UIDS, UID_WINDOW
from email_ingestion.producer.fetcher import BATCH_BYTES, MessageFetcher
from email_ingestion.producer.known_mail import KnownMail, LedgerUids, Locations
from email_ingestion.producer.other_mailboxes import OtherMailboxes, without_place
from email_ingestion.producer.portion_size import PortionSize
from email_ingestion.producer.selection import FetchFilter, batches, mark_history
from email_ingestion.reconcile.comparison import MessageState, ReconcileReport, compare
from email_ingestion.records import RawMessage
from email_ingestion.stream import Appender, Quarantine, QuarantinedMessage

EVIDENCE_UIDS = 10_000  # messages whose size and date one comparison asks for: some 2 MB
MAX_VANISHED = 20_000  # messages that left the mailbox, of which one comparison looks whether they were deleted
VANISHED_AT_ONCE = 2_000  # of them, for which the other mailboxes are opened once
SAMPLES = 5  # messages that are read whole
SAMPLE_BYTES = 256 * 1024


class Reconciler:
    """One comparison on one connection.

    With `wait_for_capacity` it also repairs; where that returns False, a batch is left to the next comparison.
    """

    def __init__(
        self,
        account: str,
        connection: ImapMailbox,
        mailbox: SelectedMailbox,
        *,
        appender: Appender,
        fetcher: MessageFetcher,
        fetch_filter: FetchFilter,
        known_mail: KnownMail,
        others: OtherMailboxes,
        quarantine: Quarantine,
        wait_for_capacity: Callable[[], bool] | None,
        samples: int = SAMPLES,
        observe: Observe,
    ) -> None:
        self._account = account
        self._connection = connection
        self._mailbox = mailbox
        self._appender = appender
        self._fetcher = fetcher
        self._fetch_filter = fetch_filter
        self._known_mail = known_mail
        self._others = others
        self._quarantine = quarantine
        self._held: dict[int, QuarantinedMessage] = {}
        self._wait_for_capacity = wait_for_capacity
        self._observe = observe
        self._rescan = 0
        self._first_uid = 1
        self._portion_size = PortionSize()
        self._samples = samples
        self._random = random.Random()  # noqa: S311 - which messages are looked at is no secret
        # Delivered messages that are not listed any more: a random number, UID and identity. Of too many some are
        # chosen by chance, each time others: most may have been moved, and are not listed here in the next one either.
        self._vanished: list[tuple[float, int, str]] = []
        self._sample: list[tuple[bool, float, int]] = []  # another size than recorded, a random number, UID
        self.report = ReconcileReport(account, mailbox.name, mailbox.uidvalidity, 0)
        self.position = 0  # the messages that were looked at, of those that the mailbox had at first

    def run(self) -> ReconcileReport:
        """Compare everything at once; raises as `steps` does."""
        for _ in self.steps():
            pass
        return self.report

    def steps(self) -> Iterator[None]:
        """Compare everything, pausing often; `report` is complete at the end.

        Raises IMAPConnectionError, RedisConnectionError, CircuitBreakerError, SinkUnavailable; what was filled before
        stays, and the next comparison finds it queued.
        """
        self._begin()
        report = self.report
        for low, high in self._connection.windows(1, LAST_UID, UID_WINDOW):
            listed = self._connection.list_uids(low, high)
            compared = [uid for uid in listed if self._first_uid <= uid <= report.last_uid]
            report.unfetched += len(listed) - len(compared)
            yield
            yield from self._window(max(low, self._first_uid), min(high, report.last_uid), compared)
            self.position += len(listed) - len(compared)
        report.unexpected = max(0, report.unexpected)  # moved twice
        yield from self._note_deleted()
        self._compare_bytes()
        self._observe(
            Reconciled(
                self._account, report.missing, report.duplicate, report.unexpected, report.mailbox, report.altered
            )
        )

    def _begin(self) -> None:
        """Read the cursor before anything else: what it covers is in the stream before the stream is read."""
        cursor = self._appender.cursor(self._account, self._mailbox.name)
        current = cursor if cursor and cursor.uidvalidity == self._mailbox.uidvalidity else None
        newest = max(0, self._mailbox.uidnext - 1)
        self.report.last_uid = current.uid if current else newest
        self._first_uid = current.history if current else 1
        self._rescan = current.rescan if current else newest
        self._held = {message.uid: message for message in self._quarantine.messages()}
        self._known_mail.refresh()

    def _window(self, low: int, high: int, listed: Sequence[int]) -> Iterator[None]:
        """Compare the messages `listed` from `low` to `high`."""
        for recorded in self._known_mail.recorded(low, high):
            part = listed[bisect_left(listed, recorded.low) : bisect_right(listed, recorded.high)]
            known = [uid for uid in part if uid in recorded.first_seen or uid in recorded.seen_again]
            others: list[MessageSummary] = []
            if self._is_compared(high):
                for start in range(0, len(known), MAX_FETCH_UIDS):
                    others += self._contradicted(known[start : start + MAX_FETCH_UIDS])
                    yield
                known = sorted(set(known).difference(summary.uid for summary in others))
            self.report.count(dict.fromkeys(known, "delivered"))
            self.report.unexpected += len(recorded.first_seen.difference(part))
            self._note_presence(recorded, part)
            self._count_copies({uid: recorded.seen_again[uid] for uid in known if uid in recorded.seen_again})
            self.position += len(known)
            yield
            yield from self._compare_contradicted(others)
            self.position += len(others)
            rest = sorted(set(part).difference(known, (summary.uid for summary in others)))
            while rest:
                size = self._portion_size.of(MAX_FETCH_UIDS)
                chunk, rest = rest[:size], rest[size:]
                yield from self._compare_chunk(chunk)
                self.position += len(chunk)
                yield

    def _note_presence(self, recorded: LedgerUids, listed: Sequence[int]) -> None:
        """Note which messages the server lists again; keep those it does not list, for the end of the comparison."""
        self._known_mail.note_restored(recorded.low, recorded.high, set(listed))
        vanished = (recorded.first_seen | recorded.seen_again.keys()).difference(listed)
        if vanished:
            self._vanished += [
                (self._random.random(), uid, email_id) for uid, email_id in self._known_mail.not_noted(vanished).items()
            ]
            self._vanished = heapq.nsmallest(MAX_VANISHED, self._vanished)

    def _note_deleted(self) -> Iterator[None]:
        """Note which delivered messages are gone, when every other place of them is known.

        All are asked for once more: a server that lists one now is not to be believed today.
        """
        if self._vanished and not self._others.are_fetched():
            return  # what was moved there is not known to be there; the next comparison looks again
        here = (self._mailbox.name, self._mailbox.uidvalidity)
        vanished = {uid: email_id for _, uid, email_id in self._vanished}
        uids = sorted(vanished)
        for start in range(0, len(uids), VANISHED_AT_ONCE):
            places = self._known_mail.places({vanished[uid] for uid in uids[start : start + VANISHED_AT_ONCE]})
            asked = {at.uid for known in places.values() for at in known if (at.mailbox, at.uidvalidity) == here}
            present = self._connection.list_present(sorted(asked))
            yield
            if not present.isdisjoint(vanished):
                continue
            if gone := without_place(places, self._mailbox, present, self._others):
                self._known_mail.note_deleted(gone)

    def _is_compared(self, high: int) -> bool:
        """Whether the messages up to UID `high` are compared one by one: all of a small mailbox, a part of a large one.

        The newest always are: their UIDs are given out anew by a server that was restored.
        """
        exists = self._connection.exists
        newest = high >= self.report.last_uid
        return newest or exists <= EVIDENCE_UIDS or self._random.random() < EVIDENCE_UIDS / exists

    def _contradicted(self, uids: Sequence[int]) -> list[MessageSummary]:
        """Return the messages that are others than those recorded for their UIDs; note some to be read whole."""
        summaries = self._fetcher.summaries(uids)
        self._fetcher.pop_failures()  # the ledger has them
        others = self._known_mail.contradicted(summaries)
        recorded = self._known_mail.recorded_at(uids)
        for summary in summaries:
            if summary.uid in others or summary.size > SAMPLE_BYTES:
                continue
            resized = all(each.size != summary.size for each in recorded.get(summary.uid, ()))
            self._sample.append((resized, self._random.random(), summary.uid))
        self._sample = sorted(self._sample, reverse=True)[: self._samples]
        return [summary for summary in summaries if summary.uid in others]

    def _compare_contradicted(self, summaries: Sequence[MessageSummary]) -> Iterator[None]:
        """Compare messages by identity alone, for their UIDs are those of others."""
        locations = self._known_mail.locate([summary for summary in summaries if summary.gm_msgid is not None])
        states = self._compare(summaries, locations)
        doubtful = [summary for summary in summaries if states[summary.uid] == "missing"]
        self.report.count({uid: state for uid, state in states.items() if state != "missing"})
        yield from self._check_by_content(doubtful)

    def _compare_bytes(self) -> None:
        """Read a few delivered messages whole: bytes that the server changed are reported, and never new mail."""
        for _, _, uid in self._sample:
            try:
                raw = self._connection.fetch_bodies([uid]).get(uid)
            except MessagesRefused:
                continue
            recorded = {each.sha256 for each in self._known_mail.recorded_at([uid]).get(uid, ())}
            if raw is not None and recorded and hashlib.sha256(raw).hexdigest() not in recorded:
                self.report.altered += 1
                self._observe(AlteredOnServer(self._account, self._mailbox.name, uid))

    def _compare_chunk(self, uids: Sequence[int]) -> Iterator[None]:
        """Compare messages whose location the ledger does not know.

        Those in quarantine are not asked for, which might end the conversation.
        """
        held = [self._held[uid] for uid in uids if uid in self._held]
        self._count_unsent(each.uid for each in held if not each.accepted)
        self.report.count({each.uid: "accepted" for each in held if each.accepted})
        self._portion_size.start()
        summaries = self._fetcher.summaries([uid for uid in uids if uid not in self._held])
        self._count_failures()
        locations = self._known_mail.locate(summaries)
        states = self._compare(summaries, locations)
        self._count_copies(locations.delivered)
        doubtful = [summary for summary in summaries if states[summary.uid] == "missing"]
        self._portion_size.end_step()
        if self._wait_for_capacity or any(summary.gm_msgid is None for summary in doubtful):
            self.report.count({uid: state for uid, state in states.items() if state != "missing"})
            yield from self._check_by_content(doubtful)
        else:
            self.report.count(states)

    def _compare(self, summaries: Sequence[MessageSummary], locations: Locations) -> dict[int, MessageState]:
        old = [summary for summary in summaries if summary.uid <= self._rescan]
        states = compare(summaries[len(old) :], locations, self._fetch_filter)
        if not old:
            return states
        return states | compare(old, locations, self._fetch_filter.for_old_mail(self._known_mail.first_delivery_date))

    def _check_by_content(self, doubtful: Sequence[MessageSummary]) -> Iterator[None]:
        """Fetch what seems to be missing; what is still missing after a second comparison is filled in."""
        uids = {summary.uid for summary in doubtful}
        for batch in batches(doubtful, uids, max(uids, default=0), self._portion_size.of(BATCH_BYTES)):
            if not batch.summaries:
                continue
            self._portion_size.start()
            has_capacity = self._wait_for_capacity is not None and self._wait_for_capacity()
            if not has_capacity and batch.summaries[0].gm_msgid is not None:
                self.report.count(dict.fromkeys([summary.uid for summary in batch.summaries], "missing"))
                continue
            messages = []
            for message in self._fetcher.steps(batch.summaries):
                if message:
                    messages.append(message)
                else:
                    yield
            self._count_failures()
            last_entry_id = self._known_mail.refresh()
            locations = self._known_mail.locate_by_content(messages)
            missing = [message for message in messages if message.envelope.uid not in locations.uids]
            states: dict[int, MessageState] = {message.envelope.uid: "missing" for message in missing}
            states |= dict.fromkeys(locations.purged, "purged")
            states |= locations.in_flight | dict.fromkeys(locations.delivered, "delivered")
            self.report.count(states)
            self._count_copies(locations.delivered)
            if has_capacity and missing:
                self._fill(missing, last_entry_id)
            self._portion_size.end_step()
            yield

    def _count_failures(self) -> None:
        self._count_unsent(self._fetcher.pop_failures())

    def _count_unsent(self, uids: Iterable[int]) -> None:
        """Count what the server lists but does not send as missing, until it does or an operator accepts it."""
        unsent: dict[int, MessageState] = dict.fromkeys(uids, "missing")
        self.report.count(unsent)
        self.report.unsent += len(unsent)

    def _fill(self, missing: Sequence[RawMessage], last_entry_id: str) -> None:
        added = self._appender.append_missing(mark_history(missing, LAST_UID), last_entry_id)
        self.report.repaired += len(missing)  # what was not added, somebody else has added meanwhile
        ids = tuple(message.envelope.email_id for message in missing)
        size = sum(message.envelope.size for message in missing)
        self._observe(Published(self._account, self._mailbox.name, ids, added, size))

    def _count_copies(self, delivered: Mapping[int, Location]) -> None:
        """Count messages that the ledger has from another UID.

        Such a message is a copy if the other UID is still there, else it was moved.
        """
        here = (self._mailbox.name, self._mailbox.uidvalidity)
        others = {uid: at.uid for uid, at in delivered.items() if (at.mailbox, at.uidvalidity) == here}
        others = {uid: other for uid, other in others.items() if other <= self.report.last_uid}
        listed = self._connection.list_present(sorted(set(others.values())))
        for uid, other in others.items():
            if other in listed and other != uid:
                self.report.duplicate += 1
            elif other != uid:
                self.report.unexpected -= 1  # counted at the other UID: it is still here
