"""The state of one IMAP session and its updates to the client; the commands are in modules of their own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gmail_sandbox.backend import EXPIRED, Backend

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gmail_sandbox.connection import ClientConnection
    from gmail_sandbox.mailbox import MailboxEntry, Selection
    from gmail_sandbox.message import Message

BEFORE_LOGIN = (
    b"IMAP4rev1 UNSELECT IDLE NAMESPACE QUOTA ID XLIST CHILDREN X-GM-EXT-1 XYZZY SASL-IR "
    b"AUTH=XOAUTH2 AUTH=PLAIN AUTH=PLAIN-CLIENTTOKEN AUTH=OAUTHBEARER"
)
# The list is the real one; COMPRESS is answered with NO, because the sandbox does not speak it.
AFTER_LOGIN = (
    b"IMAP4rev1 UNSELECT IDLE NAMESPACE QUOTA ID XLIST CHILDREN X-GM-EXT-1 UIDPLUS "
    b"COMPRESS=DEFLATE ENABLE MOVE CONDSTORE ESEARCH UTF8=ACCEPT LIST-EXTENDED LIST-STATUS LITERAL- "
    b"SPECIAL-USE APPENDLIMIT=35651584"
)


class CommandRefused(Exception):
    """The command ends with this NO or BAD. `args[0]` is the whole text."""


class SessionClosed(Exception):
    """The session ends with this BYE."""


class Session:
    """One client. `user` is empty before login, `selection` is None when no mailbox is selected."""

    def __init__(self, channel: ClientConnection, backend: Backend, registry: SessionRegistry) -> None:
        """Start unauthenticated."""
        self.id = backend.new_id()
        self.connection, self.backend, self.registry = channel, backend, registry
        self.user = ""
        self.selection: Selection | None = None
        self.utf8 = False
        self.condstore = False
        self.command = ""
        self.tag = b""
        self.wake = asyncio.Event()
        self._awaiting_client = False
        self._pending_bye: str | None = None
        self._expiry_timer: asyncio.TimerHandle | None = None

    def describe(self) -> dict[str, object]:
        """Return the session as plain data."""
        return {
            "id": self.id,
            "user": self.user,
            "mailbox": self.selection.name if self.selection else None,
            "command": self.command,
            "silent": self.connection.silent,
            "bytes_sent": self.connection.bytes_sent,
        }

    def end(self, bye: str) -> None:
        """End the session with BYE: now when it waits for its client, otherwise at the next safe point."""
        if self._pending_bye is None:
            self._pending_bye = bye
            if self._awaiting_client:
                self.connection.close_with_bye(bye)

    def notify_change(self) -> None:
        """Wake IDLE, because there is something to announce."""
        self.wake.set()

    def invalidate_selection(self) -> None:
        """End the session: UIDVALIDITY must not change while a mailbox is selected (RFC 3501 section 2.3.1.1)."""
        self.end(EXPIRED)

    def silence(self) -> None:
        """Stop answering without closing."""
        self.connection.silent = True

    def raise_if_ended(self) -> None:
        """Raise SessionClosed after `end`; called between answers."""
        if self._pending_bye is not None:
            raise SessionClosed(self._pending_bye)

    async def next_line(self) -> bytes:
        """Return the client's next line."""
        self.raise_if_ended()
        self._awaiting_client = True
        try:
            return await self.connection.read_line()
        finally:
            self._awaiting_client = False

    async def send(self, line: bytes) -> None:
        """Send one untagged line."""
        await self.connection.send(line + b"\r\n")

    def mark_authenticated(self, expires_at: float | None) -> None:
        """Record the login; the session ends with its access token, at `expires_at` in epoch seconds."""
        self.user = self.backend.account.user
        self.backend.stats.logins += 1
        if expires_at is not None:
            left = expires_at - self.backend.clock()
            self._expiry_timer = asyncio.get_running_loop().call_later(left, self.end, EXPIRED)

    def select(self, selection: Selection | None) -> None:
        """Replace the selected mailbox."""
        if self.selection is not None:
            self.selection.close()
        self.selection = selection

    @property
    def selected(self) -> Selection:
        """Return the selected mailbox; raise CommandRefused when there is none."""
        if self.selection is None:
            raise CommandRefused("BAD Command not allowed in this state.")
        return self.selection

    def close(self) -> None:
        """Close the selection and cancel the timer."""
        self.select(None)
        if self._expiry_timer is not None:
            self._expiry_timer.cancel()

    def pending_updates(self, *, expunges: bool = True) -> bytes:
        """Return the untagged lines about changes since the last ones.

        EXPUNGE shifts the numbers, so it must not come during FETCH, STORE and SEARCH (RFC 3501 section 7.4.1).
        """
        selection = self.selection
        if selection is None or self._pending_bye is not None:
            return b""
        lines = [b"* %d EXPUNGE\r\n" % number for number in selection.take_expunged()] if expunges else []
        if selection.take_arrived():
            lines.append(b"* %d EXISTS\r\n" % len(selection.uids))
        lines += (flags_update(entry, condstore=self.condstore) for entry in selection.take_changed())
        return b"".join(lines)

    async def send_updates(self, *, expunges: bool = True) -> None:
        """Send the untagged lines about changes since the last ones."""
        lines = self.pending_updates(expunges=expunges)
        if lines:
            await self.connection.send(lines)


def format_flags(message: Message) -> bytes:
    """Return the flags as a list."""
    return b"(" + " ".join(sorted(message.flags)).encode() + b")"


def flags_update(entry: MailboxEntry, *, condstore: bool, uid: bool = True) -> bytes:
    """Return the untagged answer about changed flags, with MODSEQ for a session that enabled CONDSTORE (RFC 7162)."""
    parts = [b"UID %d" % entry.uid] if uid else []
    if condstore:
        parts.append(b"MODSEQ (%d)" % entry.message.modseq)
    parts.append(b"FLAGS " + format_flags(entry.message))
    return b"* %d FETCH (%s)\r\n" % (entry.number, b" ".join(parts))


class SessionRegistry:
    """Every open session, so that a fault or a shutdown reaches all of them."""

    def __init__(self) -> None:
        """Start with none."""
        self._sessions: set[Session] = set()

    def __iter__(self) -> Iterator[Session]:
        """Iterate over a copy: a session that ends leaves the registry meanwhile."""
        return iter(tuple(self._sessions))

    def add(self, session: Session) -> None:
        """Register a session that opened."""
        self._sessions.add(session)

    def remove(self, session: Session) -> None:
        """Forget a session that ended."""
        self._sessions.discard(session)

    def end_all(self, bye: str) -> None:
        """End every session with `* BYE` and this text."""
        for session in self:
            session.end(bye)

    def count_authenticated(self) -> int:
        """Return how many sessions have logged in."""
        return sum(1 for session in self if session.user)
