"""Selects the messages of one mailbox that go into the stream, and cuts them into batches; nothing is fetched here.

`FetchFilter` and the batches are decisions only; `MessageSelector` also asks what is known of the mail and reports what
it leaves out. New mail and old mail are selected alike.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain, pairwise
from typing import Literal

from email_ingestion.events import Observe, Published, Quarantined, Skipped, TooLarge
from email_ingestion.mailbox import MessageSummary
from email_ingestion.mailbox.imap_mailbox import SelectedMailbox
from email_ingestion.producer.fetcher import MessageFetcher, Uploads
from email_ingestion.producer.known_mail import KnownMail
from email_ingestion.records import Cursor, RawMessage
from email_ingestion.stream import Quarantine

ExclusionReason = Literal["excluded_label", "before_start", "known", "too_large"]

END_OF_TIME = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class FetchFilter:
    """The configured rules that leave a message out."""

    exclude_labels: frozenset[str]
    start: datetime | None = None
    max_bytes: int = sys.maxsize
    start_now: bool = False  # IMAP_START=now: mail from before the first delivery is left out

    def for_old_mail(self, first_delivery_date: Callable[[], datetime | None]) -> FetchFilter:
        """Return the rules for mail that was in the mailbox when its cursor was made."""
        return replace(self, start=first_delivery_date() or END_OF_TIME) if self.start_now else self

    def exclusion_reason(self, summary: MessageSummary, known: Collection[int]) -> ExclusionReason | None:
        """Return why a message is left out, or None; `known` are UIDs that are delivered or queued already."""
        if summary.uid in known:
            return "known"
        if self.start and summary.internaldate < self.start:
            return "before_start"
        if self.exclude_labels.intersection(summary.labels):
            return "excluded_label"
        return "too_large" if summary.size > self.max_bytes else None


def mark_history(messages: Iterable[RawMessage], last_uid: int) -> list[RawMessage]:
    """Mark those up to `last_uid` as history: they were in the mailbox when its cursor was made."""
    return [replace(each, history=True) if each.envelope.uid <= last_uid else each for each in messages]


@dataclass(frozen=True, slots=True)
class FetchBatch:
    """Messages to fetch with one command, and the last UID that the cursor covers once they are in the stream."""

    summaries: tuple[MessageSummary, ...]
    last_uid: int

    @property
    def size(self) -> int:
        """Bytes, as the server states them."""
        return sum(summary.size for summary in self.summaries)


def batches(
    summaries: Iterable[MessageSummary], selected: Collection[int], last_uid: int, max_bytes: int, *, step: int = 1
) -> Iterator[FetchBatch]:
    """Cut the selected ones of ascending `summaries` into batches of at most `max_bytes`; a larger one stands alone.

    `last_uid` is the last UID of the whole range; UIDs that are not selected are covered on the way. With the `step` -1
    everything descends.
    """
    batch: list[MessageSummary] = []
    size = 0
    for summary in summaries:
        if summary.uid not in selected:
            continue
        if batch and size + summary.size > max_bytes:
            yield FetchBatch(tuple(batch), summary.uid - step)
            batch, size = [], 0
        batch.append(summary)
        size += summary.size
    yield FetchBatch(tuple(batch), last_uid)


def batches_descending(
    summaries: Sequence[MessageSummary], selected: Collection[int], last_uid: int, max_bytes: int
) -> Iterator[FetchBatch]:
    """Cut ascending `summaries` from the newest on, down to the UID `last_uid`."""
    return batches(reversed(summaries), selected, last_uid, max_bytes, step=-1)


def with_next(batches: Iterable[FetchBatch]) -> Iterator[tuple[FetchBatch, FetchBatch]]:
    """Yield every batch with the one that follows it: an empty one after the last."""
    return pairwise(chain(batches, [FetchBatch((), 0)]))


class MessageSelector:
    """Selects messages of one mailbox; made anew for each connection."""

    def __init__(
        self,
        account: str,
        mailbox: SelectedMailbox,
        *,
        fetcher: MessageFetcher,
        quarantine: Quarantine,
        fetch_filter: FetchFilter,
        multiple_mailboxes: bool,
        observe: Observe,
    ) -> None:
        """`multiple_mailboxes`: the account has others that are read, where a message was perhaps found first."""
        self._account = account
        self._mailbox = mailbox
        self._fetcher = fetcher
        self._quarantine = quarantine
        self._multiple_mailboxes = multiple_mailboxes
        self._observe = observe
        self.fetch_filter = fetch_filter

    def summaries(self, uids: Sequence[int]) -> list[MessageSummary]:
        """Fetch the summaries of `uids`, ascending; the messages that the server refuses are quarantined.

        Those in quarantine are left to `QuarantineRetry`: asked for together with others, they may end the conversation
        again.
        """
        held = {message.uid for message in self._quarantine.messages()}
        summaries = self._fetcher.summaries([uid for uid in uids if uid not in held] if held else uids)
        self._quarantine_failures()
        return summaries

    def select(self, summaries: Sequence[MessageSummary], cursor: Cursor, known_mail: KnownMail) -> set[int]:
        """Return the UIDs of the messages (ascending) that no rule leaves out and that are not known."""
        old = {summary.uid for summary in summaries if summary.uid <= cursor.rescan}
        doubtful = [summary for summary in summaries if self._multiple_mailboxes or summary.uid in old]
        known = known_mail.uids(doubtful) if doubtful else ()
        rules_for_old = self.fetch_filter.for_old_mail(known_mail.first_delivery_date) if old else self.fetch_filter
        reasons = {
            summary.uid: (rules_for_old if summary.uid in old else self.fetch_filter).exclusion_reason(summary, known)
            for summary in summaries
        }
        for summary in summaries:
            if reasons[summary.uid] == "too_large":
                self._observe(TooLarge(self._account, self._mailbox.name, summary.uid, summary.size))
        for reason, count in Counter(reason for reason in reasons.values() if reason).items():
            self._observe(Skipped(self._account, reason, count))
        return {uid for uid, reason in reasons.items() if reason is None}

    def prefetch(self, batch: FetchBatch) -> None:
        """Have the server prepare a batch that is fetched soon."""
        self._fetcher.prefetch(batch.summaries)

    def fetch(self, batch: FetchBatch, cursor: Cursor, known_mail: KnownMail) -> list[RawMessage]:
        """Fetch the messages of a batch that are to be appended; a cursor passes none that was refused: quarantined."""
        return self._to_append(list(self._fetcher.messages(batch.summaries)), cursor, known_mail)

    def fetch_steps(
        self, batch: FetchBatch, cursor: Cursor, known_mail: KnownMail, uploads: Uploads
    ) -> Generator[float, None, list[RawMessage]]:
        """Fetch and return as `fetch` does, and yield 0 now and then while a large message comes.

        Large contents are added to `uploads` as `MessageFetcher.messages` says.
        """
        messages = []
        for message in self._fetcher.steps(batch.summaries, uploads):
            if message:
                messages.append(message)
            else:
                yield 0.0
        return self._to_append(messages, cursor, known_mail)

    def _to_append(self, messages: list[RawMessage], cursor: Cursor, known_mail: KnownMail) -> list[RawMessage]:
        unknown = self._without_known(messages, cursor, known_mail)
        self._quarantine_failures()
        return mark_history(unknown, cursor.rescan)

    def report_published(self, messages: Sequence[RawMessage], added: int) -> None:
        """Announce that `messages` were appended, `added` of them for the first time."""
        if messages:
            ids = tuple(message.envelope.email_id for message in messages)
            size = sum(message.envelope.size for message in messages)
            self._observe(Published(self._account, self._mailbox.name, ids, added, size))

    def _quarantine_failures(self) -> None:
        failures = self._fetcher.pop_failures()
        for uid, held in self._quarantine.add(failures, proven=self._fetcher.others_came).items():
            self._observe(Quarantined(self._account, self._mailbox.name, uid, failures[uid], held.tries))

    def _without_known(self, messages: list[RawMessage], cursor: Cursor, known_mail: KnownMail) -> list[RawMessage]:
        """Drop known mail: without X-GM-MSGID only the bytes show that it was read under another UIDVALIDITY."""
        unnamed = [message for message in messages if message.envelope.gm_msgid is None]
        old = [each for each in unnamed if self._multiple_mailboxes or each.envelope.uid <= cursor.rescan]
        if not old:
            return messages
        known = known_mail.known_ids(old)
        unknown = [message for message in messages if message.envelope.email_id not in known]
        if len(unknown) < len(messages):
            self._observe(Skipped(self._account, "known", len(messages) - len(unknown)))
        return unknown
