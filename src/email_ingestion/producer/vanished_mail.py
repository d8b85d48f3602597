"""Notes the messages of which the server says that they are deleted (VANISHED of QRESYNC, RFC 7162).

    ranges of UIDs ─▶ delivered, and not noted? ─▶ still the same mailbox? ─▶ listed in none that is read? ─▶ ledger

What the server says is only a hint where to look: nothing is noted that a comparison (`reconcile`) would not note. What
it cannot decide is left to that: a mailbox that was emptied or restored, above all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from email_ingestion.mailbox import ImapMailbox
from email_ingestion.mailbox.imap_mailbox import SelectedMailbox
from email_ingestion.mailbox.uid_listing import LAST_UID, MAX_FETCH_UIDS, UidRange
from email_ingestion.producer.known_mail import InFlight
from email_ingestion.producer.other_mailboxes import OtherMailboxes, without_place
from email_ingestion.stream import Appender

if TYPE_CHECKING:
    from email_ingestion.ledger.store import Ledger

# Messages that may vanish at once from a window of UIDs while fewer are left in the mailbox; and in any case.
MIN_LIMIT, MAX_LIMIT = 100, 20_000


class VanishedMail:
    """The deletions of one mailbox, as one connection hears of them."""

    def __init__(
        self,
        account: str,
        connection: ImapMailbox,
        mailbox: SelectedMailbox,
        *,
        appender: Appender,
        ledger: Callable[[], Ledger],
        others: OtherMailboxes,
    ) -> None:
        self._account = account
        self._connection = connection
        self._mailbox = mailbox
        self._appender = appender
        self._ledger = ledger
        self._others = others
        self.modseq = 0  # the highest one of the mailbox when it was opened last to look at deletions
        self.waiting = False  # whether what is in the stream must be recorded first; ask again
        self.contradicted = False  # whether the server listed what it had said to be deleted; ask again

    def begin(self) -> None:
        """Begin another round."""
        self.waiting = self.contradicted = False

    def steps(self, ranges: Sequence[UidRange], in_flight: InFlight) -> Iterator[None]:
        """Note what of these UIDs is gone, pausing often. Raises SessionExpired for another mailbox of the name."""
        in_flight.refresh()  # before the ledger is asked: what has left the stream is in there
        here = (self._mailbox.name, self._mailbox.uidvalidity)
        self.waiting = self.waiting or in_flight.has_within(*here, ranges)
        found = self._ledger().server_state.not_noted_within(self._account, *here, ranges, limit=MAX_LIMIT + 1)
        if not found:
            return
        fresh = self._connection.reopen()
        self._mailbox.check_same(fresh)
        self.modseq = fresh.modseq
        if len(found) > min(MAX_LIMIT, max(MIN_LIMIT, fresh.exists)):
            return  # emptied or restored: a comparison of the whole mailbox decides
        if not self._others.are_fetched():  # it may have been moved there
            self.waiting = True
            return
        uids = sorted(found)
        for start in range(0, len(uids), MAX_FETCH_UIDS):
            yield
            self._note({uid: found[uid] for uid in uids[start : start + MAX_FETCH_UIDS]}, in_flight)

    def _has_unfetched(self) -> bool:
        """Whether there is mail behind the cursor: it may be what vanished, under new UIDs."""
        cursor = self._appender.cursor(self._account, self._mailbox.name)
        return not cursor or bool(self._connection.list_uids(cursor.uid + 1, LAST_UID))

    def _note(self, found: dict[int, tuple[str, str]], in_flight: InFlight) -> None:
        """Note which of these messages are gone, when every other place of them is known."""
        if self._has_unfetched():
            self.waiting = True
            return
        in_flight.refresh()
        moving = {email_id for email_id, sha256 in found.values() if in_flight.by_sha256(sha256) == "queued"}
        self.waiting = self.waiting or bool(moving)
        state = self._ledger().server_state
        places = state.places({email_id for email_id, _ in found.values()} - moving)
        here = (self._mailbox.name, self._mailbox.uidvalidity)
        asked = sorted({at.uid for known in places.values() for at in known if (at.mailbox, at.uidvalidity) == here})
        present = self._connection.list_present(asked)
        if not present.isdisjoint(found):
            self.contradicted = True
            return
        if gone := without_place(places, self._mailbox, present, self._others):
            state.note_deleted(self._mailbox.name, gone)
