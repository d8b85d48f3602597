"""Walks back through what a mailbox held when its cursor was made: newest first, a portion at a time, beside new mail.

UIDs below the mark ─▶ outlines (≤ 500) ─▶ pick ─▶ portions (≤ 1 MB) ─▶ bodies ─▶ append + mark

The mark is the other end of the cursor (`Cursor.history`), so a crash goes on where the walk was.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator

from email_ingestion.events import HistoryWalked
from email_ingestion.mailbox.imap_mailbox import MAX_FETCH_UIDS, UID_WINDOW
from email_ingestion.producer.choice import Portion, portions_down
from email_ingestion.producer.feed import AskRoom, Feed
from email_ingestion.producer.fetch import PORTION_BYTES
from email_ingestion.producer.picker import Accounted
from email_ingestion.records import Cursor

CLOCK = time.monotonic


class History:
    """Of one opened mailbox; made anew for each connection."""

    def __init__(self, feed: Feed, room: AskRoom) -> None:
        self._feed = feed
        self._room = room
        self._begun_at = CLOCK()
        self._begun_from: int | None = None

    def steps(self) -> Iterator[float]:
        """Walk to the beginning; each step says for how many seconds to do something else. Raises as `Sync.run` does.

        It never ends: infinity means that there is nothing to do until the cursor is another one.
        """
        while True:
            cursor = self._feed.cursor()
            if cursor and cursor.uidvalidity == self._feed.opened.uidvalidity:
                if cursor.history > 1:
                    yield from self._walk(cursor)
                    continue
                self._report(cursor)
            yield math.inf

    def _walk(self, cursor: Cursor) -> Iterator[float]:
        accounted = self._feed.look()
        while cursor.history > 1:
            for step in self._window(cursor, accounted):
                if isinstance(step, Cursor):
                    cursor = step
                    self._report(cursor)
                    yield 0.0
                else:
                    yield step

    def _window(self, cursor: Cursor, accounted: Accounted) -> Iterator[Cursor | float]:
        """The UIDs just below the mark; yields the cursor whenever it has moved, else the seconds to wait."""
        feed = self._feed
        low = max(1, cursor.history - UID_WINDOW)
        uids = feed.connection.list_uids(low, cursor.history - 1)
        if not uids:
            yield from self._carry([Portion((), low)], cursor, accounted)
        while uids:
            chunk, uids = uids[-MAX_FETCH_UIDS:], uids[:-MAX_FETCH_UIDS]
            downto = chunk[0] if uids else low
            outlines = feed.picker.outlines(chunk)
            wanted = feed.picker.wanted(outlines, cursor, accounted)
            for step in self._carry(portions_down(outlines, wanted, downto, PORTION_BYTES), cursor, accounted):
                cursor = step if isinstance(step, Cursor) else cursor
                yield step

    def _carry(self, cut: Iterable[Portion], cursor: Cursor, accounted: Accounted) -> Iterator[Cursor | float]:
        return self._feed.carry(cut, cursor, accounted, self._room, "history")

    def _report(self, cursor: Cursor) -> None:
        """UIDs stand for messages here: how many there are below the mark nobody has counted."""
        if self._begun_from is None:
            self._begun_from = cursor.history
        opened = self._feed.opened
        left, top = cursor.history - 1, max(1, opened.uidnext - 1)
        share = min(1.0, left / top)
        walked = self._begun_from - cursor.history
        seconds = (CLOCK() - self._begun_at) / walked * left if walked else None
        self._feed.observe(HistoryWalked(self._feed.account, round(share * opened.exists), 1 - share, seconds))
