"""What the sandbox has done so far, for tests that must prove what a client did and did not ask for."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Stats:
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

    def connected(self) -> None:
        """Count a connection that opened."""
        self.connections_total += 1
        self.connections_now += 1
        self.connections_max = max(self.connections_max, self.connections_now)

    def body_fetched(self, mailbox: str, uid: int, msgid: int) -> None:
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
