"""Keeps labels and flags in the database equal to those on the server: asks now and then what changed (CONDSTORE).

    windows of UIDs ─▶ FETCH X-GM-LABELS FLAGS (CHANGEDSINCE) ─▶ ledger ─▶ the MODSEQ up to which that is done, in the
                                                                            cursor

Where the server has QRESYNC, it is asked for what was deleted at the same time: `vanished_mail`. Not for what was
deleted before anything is remembered, and not by a server whose MODSEQ went back: a comparison looks after that.

A MODSEQ that is seen in one window may be above a change in an earlier one, made after that was read. So a round only
covers the MODSEQ that was there before it began; what changed during a round is left to the next one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from email_ingestion.events import LabelsChanged, Observe
from email_ingestion.ledger.model import Location, Marks
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.mailbox.imap_mailbox import SelectedMailbox
from email_ingestion.mailbox.message_summary import MarkChange
from email_ingestion.mailbox.uid_listing import LAST_UID
from email_ingestion.producer.known_mail import InFlight, QueueState
from email_ingestion.producer.other_mailboxes import OtherMailboxes
from email_ingestion.producer.vanished_mail import VanishedMail
from email_ingestion.records import email_id
from email_ingestion.stream import Appender

if TYPE_CHECKING:
    from email_ingestion.ledger.store import Ledger

WINDOW = 2_000  # messages asked for at once: new mail waits while they are answered
MAX_TRIES = 3  # rounds after which what the server does not send is passed over
WINDOW_BYTES = 4096  # reserved in the budget before a window, which is corrected afterwards


class LabelSync:
    """The labels and flags of one mailbox; made anew for each connection."""

    def __init__(
        self,
        account: str,
        connection: ImapMailbox,
        mailbox: SelectedMailbox,
        *,
        appender: Appender,
        ledger: Callable[[], Ledger],
        in_flight: Callable[[], InFlight],
        others: OtherMailboxes,
        interval: float,
        observe: Observe,
    ) -> None:
        """`interval`: seconds between two rounds, infinite for none; `in_flight` makes a new one for each round."""
        self._account = account
        self._connection = connection
        self._mailbox = mailbox
        self._appender = appender
        self._ledger = ledger
        self._in_flight = in_flight
        self._interval = interval
        self._observe = observe
        self._vanished = VanishedMail(account, connection, mailbox, appender=appender, ledger=ledger, others=others)
        self._modseq = mailbox.modseq  # the highest one seen
        self._incomplete = 0  # rounds in a row in which the server did not send everything

    def steps(self, fetch_delay: Callable[[int], float]) -> Iterator[float]:
        """Go on for ever; yield the seconds for which to do something else. Raises as `NewMailSync.run` does.

        `fetch_delay` gets the bytes of a window and returns 0, or the seconds to wait.
        """
        self._incomplete = 0
        if self._interval < math.inf:
            self._modseq = self._mailbox.modseq or self._connection.highest_modseq()
        while self._interval == math.inf or not self._modseq:
            yield math.inf
        while True:
            yield from self._round(self._in_flight(), fetch_delay)
            yield from _until_over(self._interval)

    def _round(self, in_flight: InFlight, fetch_delay: Callable[[int], float]) -> Iterator[float]:
        since, remembered = self._since()
        self._vanished.begin()
        done, highest, whole = self._modseq, self._modseq, True
        for low, high in self._connection.windows(1, LAST_UID, WINDOW):
            while seconds := fetch_delay(WINDOW_BYTES):
                yield seconds
            changes = self._connection.fetch_changes(low, high, since, with_deletions=remembered)
            whole = whole and changes.is_whole
            done = min([done, *(change.modseq - 1 for change in self._apply(changes.marks, in_flight))])
            highest = max([highest, *(change.modseq for change in changes.marks)])
            if changes.vanished:
                yield from (0.0 for _ in self._vanished.steps(changes.vanished, in_flight))
            yield 0.0
        self._incomplete = 0 if whole and not self._vanished.contradicted else self._incomplete + 1
        first = not remembered and bool(self._mailbox.modseq)  # of before anything was fetched
        if self._incomplete % MAX_TRIES == 0 and not self._vanished.waiting and (done > since or first):
            self._appender.set_modseq(self._account, self._mailbox.name, self._mailbox.uidvalidity, done)
        self._modseq = max(highest, self._vanished.modseq)

    def _since(self) -> tuple[int, bool]:
        """Return the MODSEQ where the last round ended, and whether that is remembered.

        Where it is not: 1, for everything, if mail was delivered.
        """
        known = self._appender.modseq(self._account, self._mailbox.name)
        if known and known <= self._modseq:
            return known, True
        return (1 if self._ledger().first_delivery_date(self._account, self._mailbox.name) else self._modseq), False

    def _apply(self, changes: Sequence[MarkChange], in_flight: InFlight) -> list[MarkChange]:
        """Change the ledger; return the messages it has not got yet: still in the stream, with the labels they had."""
        unrecorded = self._relabel(changes)
        if not unrecorded:
            return []
        in_flight.refresh()
        queued = [each for each in unrecorded if self._where(each, in_flight) == "queued"]
        # What left the stream before that was read was perhaps recorded after the ledger was asked.
        self._relabel([each for each in unrecorded if self._where(each, in_flight) != "queued"])
        return queued

    def _where(self, change: MarkChange, in_flight: InFlight) -> QueueState | None:
        if change.gm_msgid is not None:
            return in_flight.by_gm_msgid(change.gm_msgid)
        return in_flight.by_location(Location(self._mailbox.name, self._mailbox.uidvalidity, change.uid))

    def _relabel(self, changes: Sequence[MarkChange]) -> list[MarkChange]:
        """Change the ledger; return the messages it has not got."""
        if not changes:
            return []
        ids = self._identities(changes)
        marks = {ids[each.uid]: Marks(each.labels, each.flags) for each in changes if each.uid in ids}
        recorded, different = self._ledger().server_state.update_marks(self._mailbox.name, marks)
        if different:
            self._observe(LabelsChanged(self._account, self._mailbox.name, different))
        return [each for each in changes if ids.get(each.uid) not in recorded]

    def _identities(self, changes: Sequence[MarkChange]) -> dict[int, str]:
        """Return the identities by UID; without X-GM-EXT-1 those of what was delivered from there."""
        if self._connection.is_gmail:
            return {each.uid: email_id(self._account, each.gm_msgid, "") for each in changes}
        here = (self._account, self._mailbox.name, self._mailbox.uidvalidity)
        return self._ledger().server_state.ids_at(*here, [each.uid for each in changes])


def _until_over(seconds: float) -> Iterator[float]:
    """Yield the rest of `seconds`, until they are over."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        yield left
