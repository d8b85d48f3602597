"""The state that every IMAP session and HTTP request shares: the account, tokens, armed faults and counters."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gmail_sandbox.account import GmailAccount
from gmail_sandbox.faults import BandwidthQuota, Faults
from gmail_sandbox.tokens import ServiceAccount, TokenStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from gmail_sandbox.state import State

EXPIRED = "Session expired, please login again."


@dataclass(frozen=True)
class Credentials:
    """The account, its OAuth client, and how long tokens live.

    Attributes:
        user: The address of the account.
        client_id: The only OAuth client that the token endpoint knows.
        client_secret: Its secret.
        token_life: How long an access token lives, in seconds; an IMAP session ends with it.
        consent_life: How long a refresh token lives, in seconds; 0 is for ever, 604800 an app in Testing status.
        service_account: A service account whose assertions are accepted for `user`.
        app_password: The password that LOGIN and PLAIN accept; without one they are refused.
        connection_limit: How many sessions may be logged in at the same time.
    """

    user: str = "demo@example.com"
    client_id: str = "sandbox-client"
    client_secret: str = "sandbox-secret"  # noqa: S105 (the sandbox's own, published)
    token_life: float = 3600.0
    consent_life: float = 0.0
    service_account: ServiceAccount | None = None
    app_password: str = ""
    connection_limit: int = 15


@dataclass
class Backend:
    """The state behind the three ports."""

    state: State
    credentials: Credentials = field(default_factory=Credentials)
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        """Create the parts."""
        self.account = GmailAccount(self.credentials.user, self.state, clock=self.clock)
        self.tokens = TokenStore(
            self.state, self.credentials.user, self.credentials.token_life, self.clock, self.credentials.consent_life
        )
        self.faults = Faults(self.clock)
        self.stats = SandboxStats()
        self.quota = BandwidthQuota(self.faults, self.clock)

    @staticmethod
    def new_id() -> str:
        """Return an opaque id such as Gmail puts into its answers."""
        return secrets.token_hex(6)

    @property
    def all_hidden(self) -> bool:
        """Tell whether the owner, or a fault, hides All Mail from IMAP."""
        return self.account.presentation.hide_all or self.faults.get("hidden_all") is not None

    @property
    def folder_cap(self) -> int:
        """Return how many messages a mailbox shows; 0 is no limit."""
        fault = self.faults.get("folder_cap")
        return int(fault.get_number("size")) if fault else self.account.presentation.max_folder_size


@dataclass
class SandboxStats:
    """Counters since the start. `fetched` counts body downloads by mailbox and UID, and by X-GM-MSGID."""

    connections_now: int = 0
    connections_max: int = 0
    connections_total: int = 0
    logins: int = 0
    logins_refused: int = 0
    bytes_sent: int = 0
    token_requests: int = 0
    token_errors: int = 0
    tokens_revoked: int = 0
    deliveries: int = 0
    commands: Counter[str] = field(default_factory=Counter)
    fetched: dict[str, Counter[int]] = field(default_factory=dict)
    fetched_messages: Counter[int] = field(default_factory=Counter)

    def count_connection(self) -> None:
        """Count a connection that opened."""
        self.connections_total += 1
        self.connections_now += 1
        self.connections_max = max(self.connections_max, self.connections_now)

    def count_body(self, mailbox: str, uid: int, msgid: int) -> None:
        """Count the download of a body."""
        self.fetched.setdefault(mailbox, Counter())[uid] += 1
        self.fetched_messages[msgid] += 1

    def as_json(self) -> dict[str, object]:
        """Return everything as plain data."""
        return {
            "connections": {
                "now": self.connections_now,
                "max": self.connections_max,
                "total": self.connections_total,
            },
            "logins": self.logins,
            "logins_refused": self.logins_refused,
            "bytes_sent": self.bytes_sent,
            "token_requests": self.token_requests,
            "token_errors": self.token_errors,
            "tokens_revoked": self.tokens_revoked,
            "deliveries": self.deliveries,
            "commands": dict(self.commands),
            "fetched": {key: {str(uid): n for uid, n in sorted(uids.items())} for key, uids in self.fetched.items()},
            "fetched_messages": {str(msgid): n for msgid, n in self.fetched_messages.items()},
        }
