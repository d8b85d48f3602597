"""Brings the mail of a period into the stream, whatever IMAP_START leaves out: newest first, known mail skipped.

It fills gaps beside the cursor, as a repair does, so it may run at any time, beside the producer and again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol

from email_ingestion.mailbox import ImapMailbox, MessageSummary
from email_ingestion.mailbox.imap_mailbox import MAX_FETCH_UIDS, UID_WINDOW, DateRange, SelectedMailbox
from email_ingestion.producer.choice import Portion, portions_down
from email_ingestion.producer.fetch import PORTION_BYTES
from email_ingestion.producer.picker import Accounted, Picker
from email_ingestion.records import Cursor, RawMessage
from email_ingestion.stream import Gaps

LAST_UID = 2**32 - 1


class Evidence(Accounted, Protocol):
    """What became of the mail, looked at when told to."""

    def look(self) -> str:
        """See what came into the stream; returns the id of its last entry that was looked at."""
        ...

    def uids(self, outlines: Sequence[MessageSummary]) -> Collection[int]:
        """See `Accounted`."""
        ...


class Backfill:
    """Of one opened mailbox. `room` is told how many bytes are to come and returns when there is room for them."""

    def __init__(
        self,
        connection: ImapMailbox,
        opened: SelectedMailbox,
        *,
        gaps: Gaps,
        picker: Picker,
        accounted: Evidence,
        room: Callable[[int], None],
    ) -> None:
        self._connection = connection
        self._gaps = gaps
        self._picker = picker
        self._accounted = accounted
        self._room = room
        self._top = opened.uidnext - 1
        # Everything may have been read before, so everything is asked for.
        self._everything = Cursor(opened.uidvalidity, LAST_UID, rescan=LAST_UID)
        self.found = self.queued = self.looked_at = 0

    def steps(self, period: DateRange) -> Iterator[None]:
        """Go through the period, pausing often; the counts grow meanwhile. Raises as `Sync.run` does."""
        windows = [(max(1, high - UID_WINDOW + 1), high) for high in range(self._top, 0, -UID_WINDOW)]
        uids = [uid for low, high in windows for uid in reversed(self._connection.list_uids_between(low, high, period))]
        self.found = len(uids)
        yield
        for start in range(0, len(uids), MAX_FETCH_UIDS):
            chunk = uids[start : start + MAX_FETCH_UIDS][::-1]
            outlines = self._picker.outlines(chunk)
            wanted = self._picker.wanted(outlines, self._everything, self._accounted)
            for portion in portions_down(outlines, wanted, chunk[0], PORTION_BYTES):
                if portion.wanted:
                    self._fill(portion)
                self.looked_at = start + sum(uid >= portion.upto for uid in chunk)
                yield

    def _fill(self, portion: Portion) -> None:
        self._room(portion.size)
        messages = self._picker.messages(portion, self._everything, self._accounted)
        seen = self._accounted.look()
        known = self._accounted.identities(messages)
        missing: list[RawMessage] = [each for each in messages if each.envelope.email_id not in known]
        added = self._gaps.fill(missing, seen)
        self._picker.published(missing, added)
        self.queued += added
