"""A mailbox as one session sees it: its message numbers, frozen until the session may be told of changes."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .sets import Span, indexes_of_numbers, indexes_of_uids

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .mailbox import Mailbox
    from .message import Message
    from .store import Account


@dataclass(frozen=True)
class Entry:
    """A message at its place: sequence number, UID."""

    number: int
    uid: int
    message: Message


class Listener(Protocol):
    """The session that looks."""

    def changed(self) -> None:
        """Take note that there is something to announce."""

    def lost(self) -> None:
        """Take note that the view is no longer valid."""


class Selection:
    """Keeps numbers stable between updates, as RFC 3501 section 7.4.1 demands."""

    def __init__(self, account: Account, mailbox: Mailbox, name: str, cap: int, listener: Listener) -> None:
        """Open a view on the newest `cap` messages, or on all when it is 0."""
        self.account, self.mailbox, self.name = account, mailbox, name
        self.readonly = False
        self.uids: list[int] = mailbox.uids[-cap:] if cap else list(mailbox.uids)
        self._listener = listener
        self._arrived: list[int] = []
        self._removed: list[int] = []
        self._changed: dict[int, None] = {}
        mailbox.watchers.add(self)

    def close(self) -> None:
        """Stop watching the mailbox."""
        self.mailbox.watchers.discard(self)

    def uid_added(self, uid: int) -> None:
        """Take note of a new message."""
        self._arrived.append(uid)
        self._listener.changed()

    def uid_removed(self, uid: int) -> None:
        """Take note that a message left; one that was never announced leaves no trace."""
        if uid in self._arrived:
            self._arrived.remove(uid)
        else:
            self._removed.append(uid)
        self._listener.changed()

    def uid_changed(self, uid: int) -> None:
        """Take note that flags or labels changed."""
        self._changed[uid] = None
        self._listener.changed()

    def renumbered(self) -> None:
        """Take note that every UID became invalid: the session cannot go on."""
        self._listener.lost()

    def forget_change(self, uid: int) -> None:
        """Drop the note about a change this session made itself and has been told of."""
        self._changed.pop(uid, None)

    @property
    def pending(self) -> bool:
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

    def take_changed(self) -> list[Entry]:
        """Return the entries whose flags or labels changed."""
        changed, self._changed = self._changed, {}
        return [entry for uid in changed if (entry := self._entry_of(uid)) is not None]

    def _entry_of(self, uid: int) -> Entry | None:
        index = bisect_left(self.uids, uid)
        if index == len(self.uids) or self.uids[index] != uid:
            return None
        return self.entry(index)

    def entry(self, index: int) -> Entry | None:
        """Return the message at a position, or None when it has left meanwhile."""
        uid = self.uids[index]
        msgid = self.mailbox.msgid_of(uid)
        return None if msgid is None else Entry(index + 1, uid, self.account.messages[msgid])

    def entry_of_msgid(self, msgid: int) -> Entry | None:
        """Return the entry of a message by its X-GM-MSGID."""
        uid = self.mailbox.uid_of(msgid)
        return None if uid is None else self._entry_of(uid)

    def indexes(self, spans: Sequence[Span], *, by_uid: bool) -> list[range]:
        """Return the positions a sequence set names."""
        return indexes_of_uids(spans, self.uids) if by_uid else indexes_of_numbers(spans, len(self.uids))

    def entries(self, ranges: Sequence[range]) -> Iterator[Entry]:
        """Return the messages still there among positions."""
        for part in ranges:
            for index in part:
                entry = self.entry(index)
                if entry is not None:
                    yield entry

    def everything(self) -> list[range]:
        """Return all positions."""
        return [range(len(self.uids))]
