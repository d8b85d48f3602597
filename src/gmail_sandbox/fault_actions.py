"""The faults that act at the moment they are armed or cleared; the others act when a client meets them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gmail_sandbox import folders
from gmail_sandbox.backend import EXPIRED, Backend
from gmail_sandbox.faults import OVER_QUOTA, ArmedFault, BadFault
from gmail_sandbox.message import MessageLocation

if TYPE_CHECKING:
    from collections.abc import Callable

    from gmail_sandbox.session import SessionRegistry

STRANGE_LABELS = (
    "2024",
    "007",
    "NIL",
    "\\foo",
    'a"b',
    "R&D",
    "Übung",
    "[Imap]/x",
    "two words",
    "(paren",
    "50%",
    "日本",
)
UNBALANCED = "[abc"


class FaultActions:
    """Acts on the running sandbox; `open_port` and `close_port` open and close the IMAP port."""

    def __init__(
        self, backend: Backend, sessions: SessionRegistry, open_port: Callable[[], None], close_port: Callable[[], None]
    ) -> None:
        """Connect the faults to what they act on."""
        self._backend, self._sessions = backend, sessions
        self._open_port, self._close_port = open_port, close_port
        self._actions: dict[str, Callable[[ArmedFault], bool]] = {
            "session_expiry": self._session_expiry,
            "half_open": self._half_open,
            "refuse_connections": self._refuse_connections,
            "over_quota": self._over_quota,
            "uidvalidity_reset": self._uidvalidity_reset,
            "trash_and_back": self._trash_and_back,
            "strange_labels": self._strange_labels,
        }
        backend.faults.on_arm = self._on_arm
        backend.faults.on_clear = self._on_clear
        backend.quota.on_exceeded = self._quota_exceeded

    def _on_arm(self, fault: ArmedFault) -> bool:
        """Carry out a fault that was armed; return True when it is over and need not be kept."""
        act = self._actions.get(fault.name)
        return act(fault) if act else False

    def _on_clear(self, name: str) -> None:
        if name == "refuse_connections":
            self._open_port()
        elif name == "over_quota":
            self._backend.quota.stop()

    def _session_expiry(self, fault: ArmedFault) -> bool:
        if fault.get_text("when") != "now":
            return False
        delay = fault.get_number("after_seconds")
        if delay:
            asyncio.get_running_loop().call_later(delay, self._sessions.end_all, EXPIRED)
        else:
            self._sessions.end_all(EXPIRED)
        return True

    def _half_open(self, fault: ArmedFault) -> bool:
        if fault.get_text("when") != "now":
            return False
        for session in self._sessions:
            session.silence()
        return True

    def _refuse_connections(self, fault: ArmedFault) -> bool:
        self._close_port()
        if fault.is_enabled("drop_sessions"):
            self._sessions.end_all(EXPIRED)
        if fault.options["seconds"] is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(fault.get_number("seconds"), self._backend.faults.clear, "refuse_connections")
        return False

    def _over_quota(self, fault: ArmedFault) -> bool:
        self._backend.quota.start(fault)
        return False

    def _quota_exceeded(self, fault: ArmedFault) -> None:
        if fault.get_text("how") == "bye":
            self._sessions.end_all(OVER_QUOTA)

    def _uidvalidity_reset(self, fault: ArmedFault) -> bool:
        key = folders.canonical_label(fault.get_text("mailbox"))
        if key not in self._backend.account.mailboxes:
            raise BadFault(f"there is no mailbox {key!r}; name a label or a special-use attribute such as \\All")
        self._backend.account.reset_uidvalidity(key)
        return True

    def _trash_and_back(self, fault: ArmedFault) -> bool:
        account = self._backend.account
        chosen = fault.options["msgid"]
        newest = account.mailboxes[folders.ALL].msgids[-1:]
        msgids = newest if chosen is None else [int(chosen)]
        if not msgids:
            raise BadFault("All Mail is empty")
        account.move(msgids[0], MessageLocation.TRASH)
        account.move(msgids[0], MessageLocation.ALL)
        return True

    def _strange_labels(self, fault: ArmedFault) -> bool:
        account = self._backend.account
        labels = [*STRANGE_LABELS, UNBALANCED] if fault.is_enabled("unbalanced") else list(STRANGE_LABELS)
        for msgid in account.mailboxes[folders.ALL].msgids[-int(fault.get_number("messages")) :]:
            account.change_labels(msgid, add=labels)
        return True
