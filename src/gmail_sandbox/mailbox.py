"""A mailbox as IMAP sees it: its UIDVALIDITY and a growing list of UIDs, each naming a message.

It holds no message; the account decides what belongs in it.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Protocol


class Watcher(Protocol):
    """A session that has the mailbox selected."""

    def uid_added(self, uid: int) -> None:
        """Take note of a new message."""

    def uid_removed(self, uid: int) -> None:
        """Take note that a message left."""

    def uid_changed(self, uid: int) -> None:
        """Take note that flags or labels changed."""

    def renumbered(self) -> None:
        """Take note that every UID became invalid."""


class Mailbox:
    """UIDs only grow (RFC 3501 section 2.3.1.1), so both lists stay sorted and look-ups bisect."""

    def __init__(self, key: str, uidvalidity: int, uidnext: int = 1) -> None:
        """Make an empty mailbox for a label or special-use attribute."""
        self.key = key
        self.uidvalidity = uidvalidity
        self.uidnext = uidnext
        self.uids: list[int] = []
        self.msgids: list[int] = []
        self.watchers: set[Watcher] = set()
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
        for watcher in tuple(self.watchers):
            watcher.uid_added(uid)
        return uid

    def remove(self, msgid: int) -> int:
        """Take a message out, tell the watchers, return the UID it had."""
        uid = self._uid_by_msgid.pop(msgid)
        index = bisect_left(self.uids, uid)
        del self.uids[index]
        del self.msgids[index]
        for watcher in tuple(self.watchers):
            watcher.uid_removed(uid)
        return uid

    def announce_change(self, msgid: int) -> None:
        """Tell the watchers that a message of this mailbox changed."""
        uid = self._uid_by_msgid[msgid]
        for watcher in tuple(self.watchers):
            watcher.uid_changed(uid)

    def renumber(self, uidvalidity: int) -> None:
        """Give every message a new UID under a new UIDVALIDITY."""
        msgids = self.msgids
        self.uidvalidity, self.uidnext = uidvalidity, 1
        self.uids, self.msgids, self._uid_by_msgid = [], [], {}
        for msgid in msgids:
            self.restore(self.uidnext, msgid)
            self.uidnext += 1
        for watcher in tuple(self.watchers):
            watcher.renumbered()

    def uid_of(self, msgid: int) -> int | None:
        """Return the UID of a message here, or None."""
        return self._uid_by_msgid.get(msgid)

    def msgid_of(self, uid: int) -> int | None:
        """Return the message behind a UID, or None once it has left."""
        index = bisect_left(self.uids, uid)
        if index < len(self.uids) and self.uids[index] == uid:
            return self.msgids[index]
        return None
