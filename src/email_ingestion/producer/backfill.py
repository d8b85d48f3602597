"""Brings the mail of a period into the stream, whatever IMAP_START leaves out: newest first, known mail skipped.

It fills gaps next to the cursor, as a repair does, so it may run at any time, also while the producer runs, and again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from email_ingestion.mailbox import ImapMailbox
from email_ingestion.mailbox.imap_mailbox import SelectedMailbox
from email_ingestion.mailbox.uid_listing import LAST_UID, MAX_FETCH_UIDS, DateRange
from email_ingestion.producer.fetcher import BATCH_BYTES
from email_ingestion.producer.known_mail import KnownMail
from email_ingestion.producer.selection import FetchBatch, MessageSelector, batches_descending
from email_ingestion.records import Cursor
from email_ingestion.stream import Appender


class Backfill:
    """The backfill of one mailbox. `wait_for_capacity` gets the bytes of a batch and returns when they may come."""

    def __init__(
        self,
        connection: ImapMailbox,
        mailbox: SelectedMailbox,
        *,
        appender: Appender,
        selector: MessageSelector,
        known_mail: KnownMail,
        wait_for_capacity: Callable[[int], None],
    ) -> None:
        self._connection = connection
        self._appender = appender
        self._selector = selector
        self._known_mail = known_mail
        self._wait_for_capacity = wait_for_capacity
        # Everything may have been read before, so every message is checked against the known mail.
        self._everything = Cursor(mailbox.uidvalidity, LAST_UID, rescan=LAST_UID)
        self.found = self.queued = self.checked = 0

    def steps(self, period: DateRange) -> Iterator[None]:
        """Go through the period, pausing often; the counts grow meanwhile. Raises as `NewMailSync.run` does."""
        windows = reversed(self._connection.windows(1, LAST_UID))
        uids = [uid for low, high in windows for uid in reversed(self._connection.list_uids_between(low, high, period))]
        self.found = len(uids)
        yield
        for start in range(0, len(uids), MAX_FETCH_UIDS):
            chunk = uids[start : start + MAX_FETCH_UIDS][::-1]
            summaries = self._selector.summaries(chunk)
            selected = self._selector.select(summaries, self._everything, self._known_mail)
            for batch in batches_descending(summaries, selected, chunk[0], BATCH_BYTES):
                if batch.summaries:
                    self._fill(batch)
                self.checked = start + sum(uid >= batch.last_uid for uid in chunk)
                yield

    def _fill(self, batch: FetchBatch) -> None:
        self._wait_for_capacity(batch.size)
        messages = self._selector.fetch(batch, self._everything, self._known_mail)
        last_entry_id = self._known_mail.refresh()
        known = self._known_mail.known_ids(messages)
        missing = [message for message in messages if message.envelope.email_id not in known]
        added = self._appender.append_missing(missing, last_entry_id)
        self._selector.report_published(missing, added)
        self.queued += added
