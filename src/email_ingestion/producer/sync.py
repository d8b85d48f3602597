r"""Which mail of a mailbox goes through the pipeline next: new mail oldest first, older mail newest first.

    NewMailSync    UIDs above the cursor        ─▶ summaries (≤ 500) ─▶ select ─▶ batches (≤ 1 MB) ─▶ pipeline
    HistorySync    UIDs below `cursor.history`  ─┘

A cursor has two ends. New mail moves `uid` up. The mail that was there when the cursor was made is walked backwards,
between the syncs, and moves `history` down, so after a crash both go on where they were.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

from email_ingestion.errors import SinkUnavailable
from email_ingestion.events import HistoryWalked, MailboxChanged, MailboxContradicted, NewMailWaiting, Synced
from email_ingestion.mailbox import MessageSummary
from email_ingestion.mailbox.uid_listing import LAST_UID, MAX_FETCH_UIDS, UID_WINDOW
from email_ingestion.producer.fetcher import BATCH_BYTES
from email_ingestion.producer.known_mail import KnownMail
from email_ingestion.producer.pipeline import AppendPipeline, FetchDelay
from email_ingestion.producer.portion_size import PortionSize
from email_ingestion.producer.selection import batches, batches_descending
from email_ingestion.records import Cursor

SAMPLE = 20  # messages that are compared with what was recorded of them when a session begins

# Waits so many seconds, perhaps 0; returns False when the watcher was stopped.
Pause = Callable[[float], bool]


class NewMailSync:
    """Brings the new mail of one mailbox into the stream; made anew for each connection."""

    def __init__(self, pipeline: AppendPipeline) -> None:
        self._pipeline = pipeline
        self._known_mail = pipeline.known_mail()
        self.moves = 0  # of the cursor
        self._trusted = False  # whether the mailbox was compared with what was recorded of it
        self._listed = 0  # the messages in the mailbox when everything above the cursor was listed

    def run(self, fetch_delay: FetchDelay, pause: Pause) -> bool:
        """Append everything above the cursor; False when it was stopped before the end.

        Raises IMAPConnectionError, RedisConnectionError, CircuitBreakerError, StaleCursor, SinkUnavailable. What was
        appended before stays, and the next pass goes on behind it.
        """
        listed_at = time.monotonic()
        self._known_mail = self._pipeline.known_mail()  # Redis may have been flushed or restored since the last pass
        cursor = self._cursor()
        for uids in self._list_uids(cursor):
            for start in range(0, len(uids), MAX_FETCH_UIDS):
                chunk = uids[start : start + MAX_FETCH_UIDS]
                for step in self._append(cursor, chunk, fetch_delay):
                    cursor, seconds = (step, 0.0) if isinstance(step, Cursor) else (cursor, step)
                    self.moves += isinstance(step, Cursor)
                    if not pause(seconds):
                        return False
                self._report(cursor, len(uids) - start - len(chunk))
        self._report(cursor, 0, time.monotonic() - listed_at)
        return True

    def _cursor(self) -> Cursor:
        """Return the cursor of the mailbox; make one where there is none, or one of another UIDVALIDITY."""
        pipeline, mailbox = self._pipeline, self._pipeline.mailbox
        found = pipeline.cursor()
        if found and found.uidvalidity == mailbox.uidvalidity:
            return self._checked_cursor(found)
        self._trusted = True  # what was read in another mailbox, or before the cursor was lost, is listed again
        newest = self._newest()
        if found:
            pipeline.observe(MailboxChanged(pipeline.account, mailbox.name, found.uidvalidity, mailbox.uidvalidity))
        # With IMAP_START=now, no cursor is the first run or the loss of Redis; the ledger knows which.
        start_now = pipeline.selector.fetch_filter.start_now
        first_run = not found and start_now and self._known_mail.first_delivery_date() is None
        history = 1 if first_run else newest + 1
        start = Cursor(mailbox.uidvalidity, newest, newest, history)
        return pipeline.appender.restart_cursor(pipeline.account, mailbox.name, start)

    def _newest(self) -> int:
        """Return the UID up to which mail is old; new mail can have one below a UIDNEXT that is too large."""
        found = self._pipeline.connection.newest_uid()
        below = max(0, self._pipeline.mailbox.uidnext - 1)
        return below if found is None else min(found, below) if below else found

    def _checked_cursor(self, cursor: Cursor) -> Cursor:
        """Return a cursor that the mailbox does not contradict: this one, or one with which all is listed again."""
        if self._trusted:
            return cursor
        pipeline, mailbox = self._pipeline, self._pipeline.mailbox
        try:
            recorded = self._known_mail.newest_uids(cursor.history, cursor.uid, SAMPLE)
            reason = self._contradiction(cursor, recorded)
        except SinkUnavailable:
            return cursor  # the next sync asks the ledger again
        self._trusted = bool(recorded or reason)  # a database that was made anew has nothing to compare with yet
        if reason is None:
            return cursor
        pipeline.observe(MailboxContradicted(pipeline.account, mailbox.name, reason))
        newest = self._newest()
        start = Cursor(mailbox.uidvalidity, newest, newest, newest + 1)
        return pipeline.appender.restart_cursor(pipeline.account, mailbox.name, start, wrong=cursor)

    def _contradiction(self, cursor: Cursor, recorded: Sequence[int]) -> str | None:
        """Return why the mailbox cannot be the one that was read up to the cursor, or None.

        The newest messages, of the UIDs `recorded`, are looked at: a server that is restored from a backup gives their
        UIDs out anew. UIDs that the walk through older mail has yet to come to are compared there.
        """
        pipeline, mailbox = self._pipeline, self._pipeline.mailbox
        behind = bool(mailbox.uidnext) and cursor.uid >= mailbox.uidnext
        if behind and not pipeline.connection.list_uids_from(cursor.uid):  # else the server counts UIDNEXT wrongly
            return f"it was read up to UID {cursor.uid}, and its next UID is {mailbox.uidnext}"
        sample = pipeline.selector.summaries(recorded) if recorded else []
        contradicted = self._known_mail.contradicted(sample)
        if not contradicted:
            return None
        on_their_way = self._known_mail.locate([each for each in sample if each.uid in contradicted]).in_flight
        others = sorted(contradicted - on_their_way.keys())
        return f"UID {others[0]} names another message than the one that was read" if others else None

    def _list_uids(self, cursor: Cursor) -> Iterator[list[int]]:
        """List the UIDs above the cursor: at once, unless so many came since the last time that they need windows."""
        connection, low = self._pipeline.connection, cursor.uid + 1
        if connection.exists - self._listed > UID_WINDOW:
            *windows, (low, _) = connection.windows(low, LAST_UID)
            for window in windows:
                yield connection.list_uids(*window)
        self._listed = connection.exists
        yield connection.list_uids_from(low)

    def _append(self, cursor: Cursor, uids: list[int], fetch_delay: FetchDelay) -> Iterator[Cursor | float]:
        """Fetch and append some UIDs; yield as `AppendPipeline.run` does."""
        selector = self._pipeline.selector
        summaries = selector.summaries(uids)
        selected = selector.select(summaries, cursor, self._known_mail)
        self._report_waiting(summaries, selected, cursor)
        cut = batches(summaries, selected, uids[-1], BATCH_BYTES)
        return self._pipeline.run(cut, cursor, self._known_mail, fetch_delay, "uid")

    def _report_waiting(self, summaries: Sequence[MessageSummary], selected: set[int], cursor: Cursor) -> None:
        """Announce since when new mail waits; the mail that the first run finds has waited for nobody."""
        arrived = [each.internaldate for each in summaries if each.uid in selected and each.uid > cursor.rescan]
        if arrived:
            self._pipeline.observe(NewMailWaiting(self._pipeline.account, min(arrived).timestamp()))

    def _report(self, cursor: Cursor, backlog: int, listed_ago: float | None = None) -> None:
        pipeline, mailbox = self._pipeline, self._pipeline.mailbox
        pipeline.observe(Synced(pipeline.account, mailbox.name, cursor.uidvalidity, cursor.uid, backlog, listed_ago))


class HistorySync:
    """Brings the older mail of one mailbox into the stream; made anew for each connection."""

    def __init__(self, pipeline: AppendPipeline) -> None:
        self.moves = 0  # of the cursor
        self._pipeline = pipeline
        self._started_at = time.monotonic()
        self._started_from: int | None = None
        self._portion_size = PortionSize()

    def steps(self, fetch_delay: FetchDelay) -> Iterator[float]:
        """Walk back to the first message; yield the seconds for which to do something else.

        It never ends: infinity means that there is nothing to do until the cursor is another one. Raises as
        `NewMailSync.run` does.
        """
        self._started_at, self._started_from = time.monotonic(), None
        while True:
            cursor = self._pipeline.cursor()
            if cursor and cursor.uidvalidity == self._pipeline.mailbox.uidvalidity:
                if cursor.history > 1:
                    yield from self._walk(cursor, fetch_delay)
                    continue
                self._report(0)
            yield math.inf

    def _walk(self, cursor: Cursor, fetch_delay: FetchDelay) -> Iterator[float]:
        known_mail = self._pipeline.known_mail()
        windows = self._pipeline.connection.windows(1, cursor.history - 1)
        while windows:
            low, high = windows.pop()
            uids = self._pipeline.connection.list_uids(low, high)
            below = len(windows) * UID_WINDOW
            for step in self._window(cursor, low, uids, known_mail, fetch_delay):
                if isinstance(step, Cursor):
                    cursor = step
                    self.moves += 1
                    self._report(below + bisect_left(uids, cursor.history))
                    yield 0.0
                else:
                    yield step

    def _window(
        self, cursor: Cursor, low: int, uids: list[int], known_mail: KnownMail, fetch_delay: FetchDelay
    ) -> Iterator[Cursor | float]:
        """Fetch and append UIDs, all there are from `low` to `cursor.history`; yield as `AppendPipeline.run` does."""
        selector = self._pipeline.selector
        self._portion_size.start()
        while True:
            size = self._portion_size.of(MAX_FETCH_UIDS)
            chunk, uids = uids[-size:], uids[:-size]
            last_uid = chunk[0] if uids else low
            summaries = selector.summaries(chunk) if chunk else []
            selected = selector.select(summaries, cursor, known_mail)
            cut = batches_descending(summaries, selected, last_uid, self._portion_size.of(BATCH_BYTES))
            for step in self._pipeline.run(cut, cursor, known_mail, fetch_delay, "history"):
                if isinstance(step, Cursor):
                    cursor = step
                    self._portion_size.end_step()  # what is done before the next one belongs to it: it takes what came
                    yield step
                else:
                    yield step
                    self._portion_size.start()
            if not uids:
                return

    def _report(self, left: int) -> None:
        """Announce the progress; `left` are the messages still to come."""
        if self._started_from is None:
            self._started_from = left
        walked = self._started_from - left
        seconds = (time.monotonic() - self._started_at) / walked * left if walked else None
        share = min(1.0, left / max(1, self._pipeline.connection.exists))
        self._pipeline.observe(HistoryWalked(self._pipeline.account, left, 1 - share, seconds))
