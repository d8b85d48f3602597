"""What events have told of this process so far: accounts, checks, counts; a fold over events that judges nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from email_ingestion import events
from email_ingestion.errors import CircuitBreakerError, OAuth2AuthenticationError, RedisConnectionError
from email_ingestion.events import Event
from email_ingestion.ops.records import AccountState, Check, HistoryState, Identity, Names
from email_ingestion.ops.wording import error_type, sentence

PRODUCED = ("produced",)
WORKED = ("processed", "failed", "dead_lettered", "duplicates", "orphans_claimed")


class Facts:
    """Not thread-safe by itself: `Status` guards it. `clock` gives Unix seconds."""

    def __init__(self, identity: Identity, names: Names, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.started = False
        self.draining: str | None = None
        self.held: dict[str, str] = {}  # account -> why nothing is fetched for it now
        self.troubles: dict[str, str] = {}  # account -> what is wrong with it now
        self.accounts = {name: AccountState(name) for name in names.accounts}
        self.checks = {name: Check(name, critical) for name, critical in names.dependencies.items()}
        # What the other component counts is unknown here, not zero.
        self.statistics: dict[str, int | None] = dict.fromkeys((*PRODUCED, *WORKED))
        self.statistics |= dict.fromkeys(PRODUCED if identity.component == "producer" else WORKED, 0)

    def note(self, event: Event) -> None:
        """Take in one event."""
        note = _NOTES.get(type(event))
        if note:
            note(self, event)

    def probed(self, event: events.Probed) -> None:
        """A dependency answered or did not."""
        known = self.checks.get(event.dependency)
        if known:
            took = round(event.seconds * 1000, 3)
            self._check(known, took, event.error, ok=event.ok)

    def breaker_changed(self, event: events.BreakerChanged) -> None:
        """A loop found a dependency away before the next probe did, and nobody probes it while its breaker is open."""
        known = self.checks.get(event.name)
        if known and event.error:
            self._check(known, None, event.error, ok=False)
        elif known and event.new == "CLOSED" and known.status == "unhealthy":  # its trials have succeeded
            self._check(known, None, None, ok=True)

    def redis_failed(self, event: events.RedisFailed) -> None:
        """A loop found Redis away before the next probe did."""
        if "redis" in self.checks and speaks_of_redis(event.error):
            self._check(self.checks["redis"], None, event.error, ok=False)

    def connected(self, event: events.Connected) -> None:
        """The account works again."""
        self.troubles.pop(event.account, None)
        account = self.accounts.get(event.account)
        state = "valid" if account and account.authorization == "re-authorize" else account and account.authorization
        self._account(event.account, reauth_required=False, authorization=state)

    def trouble(self, event: events.ConnectionFailed | events.NeedsOperator | events.TokenRefreshFailed) -> None:
        """The account does not work."""
        self.troubles[event.account] = sentence(event.error)
        refused = isinstance(event, events.TokenRefreshFailed) and event.permanent
        if refused or isinstance(event.error, OAuth2AuthenticationError):
            self._account(event.account, reauth_required=True, authorization="re-authorize")
        elif isinstance(event, events.TokenRefreshFailed):
            self._account(event.account, authorization="refresh failing")

    def refreshed(self, event: events.TokenRefreshed) -> None:
        """There is a token again; where consent was missing, only the next connection tells whether it suffices."""
        account = self.accounts.get(event.account)
        if account and not account.reauth_required:
            self.troubles.pop(event.account, None)
        self._account(
            event.account,
            token_expires_at=event.expires_at,
            authorization="re-authorize" if account and account.reauth_required else "valid",
            consent_ends_at=event.consent_ends_at,
        )

    def synced(self, event: events.Synced) -> None:
        """The mailbox was compared with the cursor."""
        self.troubles.pop(event.account, None)
        self._account(
            event.account,
            mailbox=event.mailbox,
            uidvalidity=event.uidvalidity,
            last_uid=event.last_uid,
            backlog=event.backlog,
            last_success=self._clock(),
        )

    def lease_changed(self, event: events.LeaseChanged) -> None:
        """Another process reads the account: what was wrong with it here is over, and what is known gets old."""
        if event.holder:
            self.troubles.pop(event.account, None)
            self.held.pop(event.account, None)
            self._account(event.account, backlog=None, last_success=None)

    def fetching_held(self, event: events.FetchPaused) -> None:
        """Fetching stopped, or goes on."""
        if event.reason:
            self.held[event.account] = event.reason
        else:
            self.held.pop(event.account, None)

    def delivered(self, event: events.Delivered) -> None:
        """Either new or known: never counted as both."""
        self.count("duplicates" if event.duplicate else "processed", 1)

    def dead_lettered(self, event: events.DeadLettered) -> None:
        """The last attempt failed too, unless the message killed its worker or an operator took it away."""
        self.count("dead_lettered", 1)
        if event.error and event.reason != "operator":
            self.count("failed", 1)

    def account(self, name: str, **changes: Any) -> None:
        """What is known anew of an account."""
        self._account(name, **changes)

    def count(self, what: str, by: int) -> None:
        """Add to a statistic; one that was unknown becomes known."""
        self.statistics[what] = (self.statistics[what] or 0) + by

    def _account(self, name: str, **changes: Any) -> None:
        if name in self.accounts:
            self.accounts[name] = replace(self.accounts[name], **changes)

    def _check(self, known: Check, took: float | None, error: Exception | None, *, ok: bool) -> None:
        self.checks[known.name] = Check(
            known.name,
            known.critical,
            "healthy" if ok else "unhealthy",
            took,
            sentence(error) if error else None,
            error_type(error) if error else None,
            self._clock(),
        )


def speaks_of_redis(error: Exception) -> bool:
    """Whether it is Redis that is away, and not something else a loop has to wait for in the same way."""
    if isinstance(error, CircuitBreakerError):
        return error.name == "redis"
    return isinstance(error, RedisConnectionError)


def _set(name: str, value_of: Callable[[Any], Any]) -> Callable[[Facts, Any], None]:
    return lambda facts, event: setattr(facts, name, value_of(event))


_NOTES: dict[type[Event], Callable[[Facts, Any], None]] = {
    events.Started: _set("started", lambda _event: True),
    events.Stopping: _set("draining", lambda event: event.reason),
    events.FetchPaused: Facts.fetching_held,
    events.LeaseChanged: Facts.lease_changed,
    events.Probed: Facts.probed,
    events.BreakerChanged: Facts.breaker_changed,
    events.RedisFailed: Facts.redis_failed,
    events.Connected: Facts.connected,
    events.ConnectionFailed: Facts.trouble,
    events.NeedsOperator: Facts.trouble,
    events.TokenRefreshFailed: Facts.trouble,
    events.TokenRefreshed: Facts.refreshed,
    events.Synced: Facts.synced,
    events.Watching: lambda facts, event: facts.account(event.account, watch=event.state),
    events.HistoryWalked: lambda facts, event: facts.account(
        event.account, history=HistoryState(event.remaining, event.done, event.seconds)
    ),
    events.BytesSpent: lambda facts, event: facts.account(
        event.account, bytes_today=event.today, byte_budget=event.budget
    ),
    events.Published: lambda facts, event: facts.count("produced", event.count),
    events.Delivered: Facts.delivered,
    events.Deferred: lambda facts, _event: facts.count("failed", 1),
    events.DeadLettered: Facts.dead_lettered,
    events.Reclaimed: lambda facts, event: facts.count("orphans_claimed", event.count),
}
