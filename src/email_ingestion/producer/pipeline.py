"""Takes batches from the mailbox into the stream, three at a time: one is appended, one uploaded, one fetched.

    batches ─▶ backpressure ─▶ fetch (the next one is prefetched) ─▶ upload large contents ─▶ append + cursor

`sync` decides which batches; new mail and old mail go the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from email_ingestion.events import Observe
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.mailbox.imap_mailbox import SelectedMailbox
from email_ingestion.producer.fetcher import Uploads
from email_ingestion.producer.known_mail import KnownMail
from email_ingestion.producer.selection import FetchBatch, MessageSelector, with_next
from email_ingestion.records import Cursor, RawMessage
from email_ingestion.stream import EMPTY_BACKLOG, Appender, CursorEnd, PackedEntries, StreamBacklog

# Gets the bytes of a batch, and what was fetched and is not in the stream yet: returns 0, or the seconds to wait.
FetchDelay = Callable[[int, StreamBacklog], float]
# Waits for the answer of an append: how many messages were new, and the cursor as it then stands.
Answer = Callable[[], tuple[int, Cursor]]


class FetchedBatch(NamedTuple):
    """The messages of a batch, and the uploads of the contents they refer to."""

    last_uid: int  # the last UID that the cursor covers once they are in the stream
    messages: list[RawMessage]
    uploads: Uploads


@dataclass(frozen=True, slots=True)
class AppendPipeline:
    """The pipeline of one mailbox; made anew for each connection."""

    account: str
    connection: ImapMailbox
    mailbox: SelectedMailbox
    appender: Appender
    selector: MessageSelector
    known_mail: Callable[[], KnownMail]
    observe: Observe

    def cursor(self) -> Cursor | None:
        """Return how far the mailbox was read, perhaps under another UIDVALIDITY."""
        return self.appender.cursor(self.account, self.mailbox.name)

    def run(
        self,
        batches: Iterable[FetchBatch],
        cursor: Cursor,
        known_mail: KnownMail,
        fetch_delay: FetchDelay,
        end: CursorEnd,
    ) -> Iterator[Cursor | float]:
        """Fetch and append batch by batch: yield the cursor whenever it has moved, or the seconds to wait.

        While one batch is fetched, Redis appends the one before, or the blob store takes its contents. Nothing is on
        its way to Redis when it yields.
        """
        uploading: tuple[FetchedBatch, PackedEntries] | None = None
        appending: tuple[FetchedBatch, Answer] | None = None
        try:
            for fetched in self._fetch(batches, cursor, known_mail, fetch_delay):
                if uploading:
                    uploaded, uploading = uploading, None
                    appending = self._start_append(cursor, end, *uploaded)
                entries = self.appender.pack(fetched.messages) if isinstance(fetched, FetchedBatch) else []
                if appending:
                    appended, appending = appending, None
                    yield (cursor := self._finish_append(*appended))
                if not isinstance(fetched, FetchedBatch):
                    yield fetched
                elif fetched.uploads:
                    uploading = fetched, entries
                else:
                    appending = self._start_append(cursor, end, fetched, entries)
        finally:
            if uploading:
                appending = self._start_append(cursor, end, *uploading)
            if appending:
                cursor = self._finish_append(*appending)
        if appending:
            yield cursor

    def _fetch(
        self, batches: Iterable[FetchBatch], cursor: Cursor, known_mail: KnownMail, fetch_delay: FetchDelay
    ) -> Iterator[FetchedBatch | float]:
        """Fetch the batches; the server prepares the next one meanwhile, if there is capacity for both.

        Yields the seconds to wait: 0 while a large message comes.
        """
        prefetched, before = False, EMPTY_BACKLOG
        for batch, following in with_next(batches):
            while batch.summaries and not prefetched and (seconds := fetch_delay(batch.size, before)):
                yield seconds
                before = EMPTY_BACKLOG
            backlog = StreamBacklog(len(batch.summaries), batch.size)
            prefetched = bool(following.summaries) and not fetch_delay(following.size, before + backlog)
            if prefetched:
                self.selector.prefetch(batch)
                self.selector.prefetch(following)
            uploads: Uploads = []
            messages = yield from self.selector.fetch_steps(batch, cursor, known_mail, uploads)
            yield FetchedBatch(batch.last_uid, messages, uploads)
            before = backlog

    def _start_append(
        self, cursor: Cursor, end: CursorEnd, fetched: FetchedBatch, entries: PackedEntries
    ) -> tuple[FetchedBatch, Answer]:
        """Send the append script, once the contents that the messages name are stored."""
        for upload in fetched.uploads:
            upload.result()
        name = self.mailbox.name
        return fetched, self.appender.append_later(self.account, name, cursor, fetched.last_uid, entries, end=end)

    def _finish_append(self, fetched: FetchedBatch, answer: Answer) -> Cursor:
        """Wait for the answer of the append script; return the new cursor."""
        added, cursor = answer()
        self.selector.report_published(fetched.messages, added)
        return cursor
