"""The catalogue of faults, which of them are armed, and the bandwidth quota that one of them imposes.

A fault is consumed in the module where it acts; this one only counts. An armed fault whose count is None stays until it
is cleared.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Option: TypeAlias = str | int | float | bool | None


@dataclass(frozen=True)
class FaultKind:
    """A line of the catalogue. `count` is how often it acts unless told otherwise."""

    description: str
    count: int | None = 1
    options: Mapping[str, Option] = field(default_factory=dict)
    choices: tuple[str, ...] = ()  # of the one option that is a word from a list
    required: tuple[str, ...] = ()

    def validation_error(self, given: Mapping[str, Option]) -> str:
        """Return why these options are not valid, or an empty string."""
        for name, value in given.items():
            if name not in self.options:
                return f"has no option {name!r}; it knows: {', '.join(self.options) or 'none'}"
            if not _has_type_of(self.options[name], value):
                return f"cannot take {value!r} as {name}"
            if name in ("when", "how") and value not in self.choices:
                return f"needs one of {', '.join(self.choices)} as {name}"
        missing = [name for name in self.required if given.get(name) is None]
        return f"needs the option {missing[0]}" if missing else ""


def _has_type_of(default: Option, value: Option) -> bool:
    """Tell whether a value has the type of its default; None stands for an optional number."""
    if isinstance(default, (bool, str)):
        return type(value) is type(default)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number or (default is None and value is None)


@dataclass
class ArmedFault:
    """An armed fault."""

    name: str
    remaining: int | None
    options: dict[str, Option]
    armed_at: float

    def get_number(self, name: str) -> float:
        """Return a numeric option; None counts as 0."""
        value = self.options[name]
        return float(value) if isinstance(value, (int, float)) else 0.0

    def get_text(self, name: str) -> str:
        """Return a textual option."""
        return str(self.options[name] or "")

    def is_enabled(self, name: str) -> bool:
        """Return a yes-or-no option."""
        return bool(self.options[name])


CATALOGUE: dict[str, FaultKind] = {
    # sessions
    "session_expiry": FaultKind(
        "BYE Session expired: for every session now or after a time, or at the next IDLE, or inside the next FETCH",
        options={"when": "now", "after_seconds": 0, "after_messages": 1},
        choices=("now", "idle", "fetch"),
    ),
    "bad_system_error_bye": FaultKind("BYE System Error instead of answering the next command"),
    "greeting_bye": FaultKind("the next connection is greeted with BYE"),
    "answer": FaultKind(
        "the next command, or the next one of a name, is answered so: `NO [LIMIT] IMAP command sent too fast`",
        options={"command": "", "text": ""},
        required=("text",),
    ),
    "half_open": FaultKind(
        "the peer goes silent without closing: all sessions now, at the next IDLE or at the next command",
        options={"when": "idle"},
        choices=("now", "idle", "command"),
    ),
    "stuck_select": FaultKind(
        "SELECT never answers, or answers NO System Error after some seconds", options={"seconds": None}
    ),
    "refuse_connections": FaultKind(
        "the IMAP port is closed until the fault is cleared or some seconds passed",
        count=None,
        options={"seconds": None, "drop_sessions": False},
    ),
    # login
    "stale_token": FaultKind(
        "XOAUTH2 is answered with the 400 challenge; with until_refresh, every token issued before now is stale",
        options={"until_refresh": False},
    ),
    "wrong_scope": FaultKind("XOAUTH2 is answered as for a token that lacks the mail scope", count=None),
    "lookup_failed": FaultKind(
        "XOAUTH2 ends with NO Lookup failed, with or without challenge", options={"challenge": True}
    ),
    "too_many_connections": FaultKind(
        "the login is refused for too many connections; with a limit, only while more sessions are open",
        options={"limit": None},
    ),
    "web_login_required": FaultKind("the login is refused until a human signs in with a browser", count=None),
    "imap_disabled": FaultKind(
        "the login is refused because the account, or with `domain` its administrator, has IMAP switched off",
        count=None,
        options={"domain": True},
    ),
    "app_password_required": FaultKind("LOGIN is refused even with the right app password", count=None),
    # limits
    "over_quota": FaultKind(
        "OVERQUOTA at once or after a number of bytes sent, then logins are refused for a time",
        options={"after_bytes": 0, "login_refused_seconds": 60, "how": "bye"},
        choices=("bye", "no"),
    ),
    "throttled": FaultKind("every tagged OK is late and ends with [THROTTLED]", count=None, options={"delay_ms": 50}),
    "unavailable": FaultKind(
        "the next command, or the next one of a name, answers NO [UNAVAILABLE]", options={"command": ""}
    ),
    # reading
    "nonexistent_mailbox": FaultKind("the next SELECT says NO [NONEXISTENT]"),
    "partial_fetch": FaultKind(
        "a FETCH of several messages leaves out the last ones and says so",
        options={"missing": 1, "bodies_only": True, "throttled": False},
    ),
    "uid_system_error": FaultKind(
        "a FETCH that includes one UID stops there with NO System Error",
        count=None,
        options={"uid": None, "bodies_only": True},
        required=("uid",),
    ),
    "drop_mid_literal": FaultKind("the connection ends inside the next body", options={"after_bytes": 100}),
    "drop_fetch": FaultKind(
        "the connection ends so many bytes into the answer to the next FETCH of bodies", options={"after_bytes": 0}
    ),
    "trickle": FaultKind("bodies come a few bytes at a time", count=None, options={"bytes": 1, "interval_ms": 100}),
    "glued_exists": FaultKind(
        "an EXISTS comes in one segment with `+ idling`; a message is delivered when none is pending",
        options={"deliver": True},
    ),
    "split_lines": FaultKind("answers come in small TCP segments", count=None, options={"bytes": 7, "gap_ms": 1}),
    # mailbox content
    "uidvalidity_reset": FaultKind("a mailbox gets a new UIDVALIDITY and new UIDs now", options={"mailbox": "\\All"}),
    "trash_and_back": FaultKind("a message goes to Trash and comes back with a new UID now", options={"msgid": None}),
    "strange_labels": FaultKind(
        "the newest messages get labels that are hard to parse now", options={"messages": 1, "unbalanced": False}
    ),
    "hidden_all": FaultKind("the \\All mailbox is not shown in IMAP", count=None),
    "folder_cap": FaultKind("a mailbox shows only its newest messages", count=None, options={"size": 1000}),
    # authorization page
    "redirect_refused": FaultKind("/auth says redirect_uri_mismatch, as for a client of type Web", count=None),
    # token endpoint
    "token_invalid_grant": FaultKind("/token says invalid_grant", options={"subtype": ""}),
    "token_invalid_client": FaultKind("/token says invalid_client"),
    "token_503": FaultKind("/token answers 503 with JSON"),
    "token_502_html": FaultKind("/token answers 502 with HTML"),
    "token_hang": FaultKind("/token does not answer, or late", options={"seconds": None}),
    "token_rotate": FaultKind(
        "a refresh returns a new refresh token and revokes the old one", count=None, options={"keep_old": False}
    ),
    "token_wrong_scope": FaultKind(
        "/token grants another scope than the one asked for",
        options={"scope": "https://www.googleapis.com/auth/gmail.readonly"},
    ),
}


class BadFault(ValueError):
    """No such fault or option."""


class Faults:
    """The armed faults. `on_arm` returns True for a fault that is over once it was armed, so that it is not kept."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """Start with nothing armed."""
        self._clock = clock
        self._armed: dict[str, ArmedFault] = {}
        self.on_arm: Callable[[ArmedFault], bool] = lambda _fault: False
        self.on_clear: Callable[[str], None] = lambda _name: None

    def arm(
        self, name: str, count: int | str | None = "default", options: Mapping[str, Option] | None = None
    ) -> ArmedFault:
        """Arm a fault; raise BadFault for an unknown name or option."""
        kind = CATALOGUE.get(name)
        if kind is None:
            raise BadFault(f"no fault is named {name!r}; GET /faults lists them")
        complaint = kind.validation_error(options or {})
        if complaint:
            raise BadFault(f"{name} {complaint}")
        fault = ArmedFault(
            name, kind.count if isinstance(count, str) else count, {**kind.options, **(options or {})}, self._clock()
        )
        if not self.on_arm(fault):
            self._armed[name] = fault
        return fault

    def clear(self, name: str | None = None) -> None:
        """Disarm one fault or all."""
        for cleared in [name] if name is not None else list(CATALOGUE):
            self._armed.pop(cleared, None)
            self.on_clear(cleared)

    def armed(self) -> list[ArmedFault]:
        """Return the armed faults."""
        return list(self._armed.values())

    def get(self, name: str) -> ArmedFault | None:
        """Return an armed fault without consuming it."""
        return self._armed.get(name)

    def consume(self, name: str, **options: Option) -> ArmedFault | None:
        """Consume one use of an armed fault if its options have these values."""
        fault = self._armed.get(name)
        if fault is None or any(fault.options[key] != value for key, value in options.items()):
            return None
        if fault.remaining is not None:
            fault.remaining -= 1
            if fault.remaining <= 0:
                del self._armed[name]
        return fault


if TYPE_CHECKING:
    from collections.abc import Callable

OVER_QUOTA = "[OVERQUOTA] Account exceeded command or bandwidth limits."


class BandwidthQuota:
    """The daily allowance: once it is used up, sessions end and logins are refused for a time.

    It counts from the moment the fault `over_quota` is armed.
    """

    def __init__(self, faults: Faults, clock: Callable[[], float]) -> None:
        """Start with no limit."""
        self.on_exceeded: Callable[[ArmedFault], None] = lambda _fault: None
        self._faults, self._clock = faults, clock
        self._sent = 0
        self._refused_until: float | None = None

    def start(self, fault: ArmedFault) -> None:
        """Start counting; a budget of 0 is exceeded at once."""
        self._sent, self._refused_until = 0, None
        if not fault.get_number("after_bytes"):
            self._exceed(fault)

    def stop(self) -> None:
        """Stop limiting."""
        self._refused_until = None

    def count(self, sent: int) -> None:
        """Count bytes sent to a client."""
        fault = self._faults.get("over_quota")
        if fault is None or self._refused_until is not None:
            return
        self._sent += sent
        if self._sent >= fault.get_number("after_bytes"):
            self._exceed(fault)

    def is_exhausted(self) -> bool:
        """Tell whether logins are refused now; clear the fault once its time is over."""
        if self._refused_until is None:
            return False
        if self._clock() < self._refused_until:
            return True
        self._faults.clear("over_quota")
        return False

    def _exceed(self, fault: ArmedFault) -> None:
        self._refused_until = self._clock() + fault.get_number("login_refused_seconds")
        self.on_exceeded(fault)
