"""A mailbox as IMAP sees it: its UIDVALIDITY and a growing list of UIDs, each naming a message.

It holds no message; the account decides what belongs in it.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gmail_sandbox.sequence_sets import UidRange, indexes_of_numbers, indexes_of_uids


class Mailbox:
    """UIDs only grow (RFC 3501 section 2.3.1.1), so both lists stay sorted and look-ups bisect."""

    def __init__(self, key: str, uidvalidity: int, uidnext: int = 1) -> None:
        """Make an empty mailbox for a label or special-use attribute."""
        self.key = key
        self.uidvalidity = uidvalidity
        self.uidnext = uidnext
        self.uids: list[int] = []
        self.msgids: list[int] = []
        self.selections: set[Selection] = set()
        self._uid_by_msgid: dict[int, int] = {}

    def __len__(self) -> int:
        """Return the number of messages."""
        return len(self.uids)

    def __contains__(self, msgid: int) -> bool:
        """Tell whether the message is in this mailbox."""
        return msgid in self._uid_by_msgid

    def restore(self, uid: int, msgid: int) -> None:
        """Put back an entry read from the state; entries come in UID order."""
        self.uids.append(uid)
        self.msgids.append(msgid)
        self._uid_by_msgid[msgid] = uid

    def add(self, msgid: int) -> int:
        """Assign the next UID to a message and tell the watchers."""
        uid = self.uidnext
        self.uidnext += 1
        self.restore(uid, msgid)
        for selection in tuple(self.selections):
            selection.on_uid_added(uid)
        return uid

    def remove(self, msgid: int) -> int:
        """Take a message out, tell the watchers, return the UID it had."""
        uid = self._uid_by_msgid.pop(msgid)
        index = bisect_left(self.uids, uid)
        del self.uids[index]
        del self.msgids[index]
        for selection in tuple(self.selections):
            selection.on_uid_removed(uid)
        return uid

    def announce_change(self, msgid: int) -> None:
        """Tell the watchers that a message of this mailbox changed."""
        uid = self._uid_by_msgid[msgid]
        for selection in tuple(self.selections):
            selection.on_uid_changed(uid)

    def renumber(self, uidvalidity: int) -> None:
        """Give every message a new UID under a new UIDVALIDITY."""
        msgids = self.msgids
        self.uidvalidity, self.uidnext = uidvalidity, 1
        self.uids, self.msgids, self._uid_by_msgid = [], [], {}
        for msgid in msgids:
            self.restore(self.uidnext, msgid)
            self.uidnext += 1
        for selection in tuple(self.selections):
            selection.on_renumbered()

    def uid_of(self, msgid: int) -> int | None:
        """Return the UID of a message here, or None."""
        return self._uid_by_msgid.get(msgid)

    def msgid_of(self, uid: int) -> int | None:
        """Return the message behind a UID, or None once it has left."""
        index = bisect_left(self.uids, uid)
        if index < len(self.uids) and self.uids[index] == uid:
            return self.msgids[index]
        return None


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from gmail_sandbox.message import Message


@dataclass(frozen=True)
class MailboxEntry:
    """A message at its place: sequence number, UID."""

    number: int
    uid: int
    message: Message


class Selection:
    """Keeps numbers stable between updates, as RFC 3501 section 7.4.1 demands."""

    def __init__(
        self,
        mailbox: Mailbox,
        name: str,
        messages: Mapping[int, Message],
        *,
        limit: int,
        on_change: Callable[[], None],
        on_renumbered: Callable[[], None],
    ) -> None:
        """Open a view on the newest `limit` messages of a mailbox, or on all when it is 0.

        Args:
            mailbox: Where the UIDs come from; it tells this view of every change.
            name: The mailbox's name as LIST shows it.
            messages: Every message of the account by X-GM-MSGID.
            limit: How many messages the view shows at most; 0 shows all.
            on_change: Called when there is something to announce to the client.
            on_renumbered: Called when every UID became invalid, so that the session must end.
        """
        self.mailbox, self.name = mailbox, name
        self._messages = messages
        self.readonly = False
        self.uids: list[int] = mailbox.uids[-limit:] if limit else list(mailbox.uids)
        self._on_change, self._on_renumbered = on_change, on_renumbered
        self._arrived: list[int] = []
        self._removed: list[int] = []
        self._changed: dict[int, None] = {}
        mailbox.selections.add(self)

    def close(self) -> None:
        """Stop watching the mailbox."""
        self.mailbox.selections.discard(self)

    def on_uid_added(self, uid: int) -> None:
        """Take note of a new message."""
        self._arrived.append(uid)
        self._on_change()

    def on_uid_removed(self, uid: int) -> None:
        """Take note that a message left; one that was never announced leaves no trace."""
        if uid in self._arrived:
            self._arrived.remove(uid)
        else:
            self._removed.append(uid)
        self._on_change()

    def on_uid_changed(self, uid: int) -> None:
        """Take note that flags or labels changed."""
        self._changed[uid] = None
        self._on_change()

    def on_renumbered(self) -> None:
        """Take note that every UID became invalid: the session cannot go on."""
        self._on_renumbered()

    def forget_change(self, uid: int) -> None:
        """Drop the note about a change this session made itself and has been told of."""
        self._changed.pop(uid, None)

    @property
    def has_pending(self) -> bool:
        """Tell whether there is anything to announce."""
        return bool(self._arrived or self._removed or self._changed)

    def take_expunged(self) -> list[int]:
        """Take removed messages out of the view; return their numbers in the order to announce them."""
        numbers = []
        for uid in self._removed:
            index = bisect_left(self.uids, uid)
            if index < len(self.uids) and self.uids[index] == uid:
                del self.uids[index]
                numbers.append(index + 1)
        self._removed.clear()
        return numbers

    def take_arrived(self) -> bool:
        """Take new messages into the view; return whether there were any."""
        arrived, self._arrived = self._arrived, []
        self.uids += arrived
        return bool(arrived)

    def take_changed(self) -> list[MailboxEntry]:
        """Return the entries whose flags or labels changed."""
        changed, self._changed = self._changed, {}
        return [entry for uid in changed if (entry := self._find_entry(uid)) is not None]

    def _find_entry(self, uid: int) -> MailboxEntry | None:
        index = bisect_left(self.uids, uid)
        if index == len(self.uids) or self.uids[index] != uid:
            return None
        return self.entry(index)

    def entry(self, index: int) -> MailboxEntry | None:
        """Return the message at a position, or None when it has left meanwhile."""
        uid = self.uids[index]
        msgid = self.mailbox.msgid_of(uid)
        return None if msgid is None else MailboxEntry(index + 1, uid, self._messages[msgid])

    def find_by_msgid(self, msgid: int) -> MailboxEntry | None:
        """Return the entry of a message by its X-GM-MSGID."""
        uid = self.mailbox.uid_of(msgid)
        return None if uid is None else self._find_entry(uid)

    def indexes(self, spans: Sequence[UidRange], *, by_uid: bool) -> list[range]:
        """Return the positions a sequence set names."""
        return indexes_of_uids(spans, self.uids) if by_uid else indexes_of_numbers(spans, len(self.uids))

    def entries(self, ranges: Sequence[range]) -> Iterator[MailboxEntry]:
        """Return the messages still there among positions."""
        for part in ranges:
            for index in part:
                entry = self.entry(index)
                if entry is not None:
                    yield entry

    def all_indexes(self) -> list[range]:
        """Return all positions."""
        return [range(len(self.uids))]
