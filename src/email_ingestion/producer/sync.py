r"""One pass over the new mail of one mailbox: everything above the cursor goes into the stream, oldest first.

UIDs above the cursor ─▶ outlines (≤ 500) ─▶ pick ─▶ portions (≤ 1 MB) ─▶ bodies ─▶ append + cursor

What was there when the cursor was made is left to `history`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from email_ingestion.events import MailboxChanged, NewMailWaiting, Synced
from email_ingestion.mailbox import MessageSummary
from email_ingestion.mailbox.imap_mailbox import MAX_FETCH_UIDS, UID_WINDOW
from email_ingestion.producer.choice import portions
from email_ingestion.producer.feed import AskRoom, Feed
from email_ingestion.producer.fetch import PORTION_BYTES
from email_ingestion.records import Cursor


class Sync:
    """Keeps one opened mailbox and the stream equal. Made anew for each connection.

    `rest` waits so many seconds, perhaps none; it returns False when told to stop.
    """

    def __init__(self, feed: Feed, ask_room: AskRoom, rest: Callable[[float], bool]) -> None:
        self._feed = feed
        self._ask_room = ask_room
        self._rest = rest
        self._accounted = feed.look()
        self._first = True

    def run(self) -> bool:
        """Bring everything above the cursor into the stream; False when it was told to stop before the end.

        Raises IMAPConnectionError, RedisConnectionError, CircuitBreakerError, StaleCursor, SinkUnavailable; whatever
        was appended before stays, and the next pass goes on behind it.
        """
        listed_at = time.monotonic()
        self._accounted = self._feed.look()  # anew: Redis may have been flushed or restored since the last pass
        cursor = self._cursor()
        for uids in self._listed(cursor):
            for start in range(0, len(uids), MAX_FETCH_UIDS):
                chunk = uids[start : start + MAX_FETCH_UIDS]
                cursor, going = self._take(cursor, chunk)
                if not going:
                    return False
                self._report(cursor, len(uids) - start - len(chunk))
        self._report(cursor, 0, time.monotonic() - listed_at)
        return True

    def _cursor(self) -> Cursor:
        feed, opened = self._feed, self._feed.opened
        found = feed.cursor()
        if found and found.uidvalidity == opened.uidvalidity:
            return found
        newest = max(0, opened.uidnext - 1)
        if found:
            feed.observe(MailboxChanged(feed.account, opened.name, found.uidvalidity, opened.uidvalidity))
        # With IMAP_START=now, no cursor is the first run or the loss of Redis; the ledger knows which.
        first_run = not found and feed.picker.rules.begin_now and self._accounted.begun() is None
        history = 1 if first_run else newest + 1
        begin = Cursor(opened.uidvalidity, newest, newest, history)
        return feed.intake.restart_cursor(feed.account, opened.name, begin)

    def _listed(self, cursor: Cursor) -> Iterator[list[int]]:
        """UIDs above the cursor; in windows up to what the mailbox held when it was opened, then all the rest."""
        connection, low = self._feed.connection, cursor.uid + 1
        while self._first and low + UID_WINDOW < self._feed.opened.uidnext:
            yield connection.list_uids(low, low + UID_WINDOW - 1)
            low += UID_WINDOW
        self._first = False
        yield connection.list_uids_from(low)

    def _take(self, cursor: Cursor, uids: list[int]) -> tuple[Cursor, bool]:
        """Fetch and append one stretch of UIDs; also says whether to go on."""
        picker = self._feed.picker
        outlines = picker.outlines(uids)
        wanted = picker.wanted(outlines, cursor, self._accounted)
        self._tell_waiting(outlines, wanted, cursor)
        cut = portions(outlines, wanted, uids[-1], PORTION_BYTES)
        for step in self._feed.carry(cut, cursor, self._accounted, self._ask_room, "uid"):
            cursor, pause = (step, 0.0) if isinstance(step, Cursor) else (cursor, step)
            if not self._rest(pause):
                return cursor, False
        return cursor, True

    def _tell_waiting(self, outlines: Sequence[MessageSummary], wanted: set[int], cursor: Cursor) -> None:
        """Since when new mail waits; what the first run finds has waited for nobody."""
        arrived = [each.internaldate for each in outlines if each.uid in wanted and each.uid > cursor.rescan]
        if arrived:
            self._feed.observe(NewMailWaiting(self._feed.account, min(arrived).timestamp()))

    def _report(self, cursor: Cursor, backlog: int, listed_ago: float | None = None) -> None:
        feed = self._feed
        feed.observe(Synced(feed.account, feed.opened.name, cursor.uidvalidity, cursor.uid, backlog, listed_ago))
