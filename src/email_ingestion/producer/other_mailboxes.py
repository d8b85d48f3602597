"""Looks into the other mailboxes of an account: what left one of them was deleted only if it lies in none of them.

A message that is moved is in its new mailbox before it leaves the old one. So after it was missed here, all mail of the
others is brought in first; then the ledger knows where it lies, and the server is asked whether it still does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from email_ingestion.errors import ConfigurationError, IMAPCommandRefused
from email_ingestion.ledger.model import Location
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.mailbox.imap_errors import MailboxGone
from email_ingestion.mailbox.imap_mailbox import SelectedMailbox
from email_ingestion.mailbox.mailbox_names import ListedMailbox
from email_ingestion.mailbox.uid_listing import LAST_UID
from email_ingestion.records import Cursor

_CANNOT_OPEN = (ConfigurationError, IMAPCommandRefused, MailboxGone)


class OtherMailboxes:
    """The mailboxes of an account that are read beside the one that is open on a connection.

    Its methods open them and then the first one again. They raise IMAPConnectionError, and SessionExpired when that is
    another mailbox now.
    """

    def __init__(
        self,
        connection: ImapMailbox,
        mailbox: SelectedMailbox,
        settings: Sequence[str],
        cursor_of: Callable[[str], Cursor | None],
    ) -> None:
        r"""`settings` name them as IMAP_MAILBOX does, as by an attribute like `\Junk`."""
        self._connection = connection
        self._mailbox = mailbox
        self._settings = settings
        self._cursor_of = cursor_of
        self._found: dict[str, ListedMailbox] = {}

    def are_fetched(self) -> bool:
        """Whether all mail in them was fetched; not where one of them cannot be looked at."""
        try:
            return all(self._is_fetched(each) for each in self._listed())
        except _CANNOT_OPEN:
            return False

    def present(self, places: Collection[Location]) -> set[Location] | None:
        """Return those of these places that lie in them and have a message still; None when one cannot be opened."""
        wanted: dict[str, set[Location]] = {}
        for place in places:
            wanted.setdefault(place.mailbox, set()).add(place)
        found: set[Location] = set()
        try:
            for mailbox in self._listed():
                if mailbox.name in wanted:
                    found |= self._present_in(mailbox, wanted[mailbox.name])
        except _CANNOT_OPEN:
            return None
        return found

    def _listed(self) -> list[ListedMailbox]:
        for setting in self._settings:
            if setting not in self._found:
                self._found[setting] = self._connection.find_mailbox(setting)
        return [each for each in self._found.values() if each.name != self._mailbox.name]

    def _is_fetched(self, mailbox: ListedMailbox) -> bool:
        with self._examined(mailbox) as there:
            cursor = self._cursor_of(there.name)
            if cursor is None or cursor.uidvalidity != there.uidvalidity or cursor.history > 1:
                return False
            return not self._connection.list_uids(cursor.uid + 1, LAST_UID)

    def _present_in(self, mailbox: ListedMailbox, places: Collection[Location]) -> set[Location]:
        with self._examined(mailbox) as there:
            by_uid = {place.uid: place for place in places if place.uidvalidity == there.uidvalidity}
            return {by_uid[uid] for uid in self._connection.list_present(sorted(by_uid))}

    @contextmanager
    def _examined(self, mailbox: ListedMailbox) -> Iterator[SelectedMailbox]:
        own = self._connection.examined
        try:
            yield self._connection.examine(mailbox)
        finally:
            back = self._connection.examine(own)
        self._mailbox.check_same(back)


def without_place(
    places: Mapping[str, set[Location]],
    mailbox: SelectedMailbox,
    present: Collection[int],
    others: OtherMailboxes,
) -> list[str]:
    """Return the messages, of which all places are given, that lie in no mailbox of the account that is read.

    `present` are the UIDs that `mailbox`, which is open, has of them. Under another UIDVALIDITY it has none.
    """
    here = (mailbox.name, mailbox.uidvalidity)
    gone = {
        email_id: known
        for email_id, known in places.items()
        if not any((at.mailbox, at.uidvalidity) == here and at.uid in present for at in known)
    }
    elsewhere = {at for known in gone.values() for at in known if at.mailbox != mailbox.name}
    if not elsewhere:
        return list(gone)
    there = others.present(elsewhere)
    if there is None:
        return [email_id for email_id, known in gone.items() if all(at.mailbox == mailbox.name for at in known)]
    return [email_id for email_id, known in gone.items() if known.isdisjoint(there)]
