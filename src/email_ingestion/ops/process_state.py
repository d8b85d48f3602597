"""The state of this process as its events tell it: accounts, checks, counts; and whether its loops turn."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from email_ingestion import events
from email_ingestion.errors import (
    CircuitBreakerError,
    ConfigurationError,
    OAuth2AuthenticationError,
    OperationFailed,
    RedisConnectionError,
    is_thread_shortage,
    is_unforeseen,
)
from email_ingestion.events import Event
from email_ingestion.ops.redaction import describe_error, describe_unforeseen, error_type
from email_ingestion.ops.status_records import (
    AccountState,
    Check,
    HistoryState,
    Identity,
    LoopFailure,
    Names,
    QuarantineState,
    SinkWait,
)
from email_ingestion.process_limits import describe_thread_limits

PRODUCER_COUNTS = ("produced",)
# Seconds after the next try in which a failure of a loop is still shown: what failed may not be what is tried first.
# A failure nobody foresaw may be that of a comparison, which starts again after a minute.
SHOWN_SECONDS = {True: 90.0, False: 10.0}
WORKER_COUNTS = ("processed", "failed", "dead_lettered", "duplicates", "orphans_claimed")
SLOW_ANSWER = "an answer of the mail server"
STALLED = "its watcher got nothing done"


class ProcessState:
    """Built up from events; not thread-safe, `Status` guards it. `clock` gives Unix seconds, `ticks` monotonic ones.

    Ages go by the monotonic ones: a clock that is set must neither hide a failure nor make one up.
    """

    def __init__(
        self,
        identity: Identity,
        names: Names,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._ticks = ticks
        self.started = False
        self.draining: str | None = None
        self.paused_accounts: dict[str, str] = {}  # account -> why nothing is fetched for it now
        self.account_problems: dict[str, str] = {}  # account -> what is wrong with it now
        self._server_failures: dict[str, Exception] = {}  # account -> why its mail server failed at the last look
        self.loop_failures: dict[str, LoopFailure] = {}
        self.sink_problems: dict[str, str] = {}  # sink -> what is wrong with its calls now
        self.sink_calls: dict[str, tuple[tuple[str, float], ...]] = {}  # sink -> messages and since when, Unix seconds
        self.sink_waits: dict[str, SinkWait] = {}  # of each sink that some mail waits for
        self.sinks_oldest: dict[str, float] = {}  # sink -> since when the oldest message waits for it, Unix seconds
        self.accounts = {name: AccountState(name) for name in names.accounts}
        self.checks = {name: Check(name, critical) for name, critical in names.dependencies.items()}
        # What the other component counts is unknown here, not zero.
        self.statistics: dict[str, int | None] = dict.fromkeys((*PRODUCER_COUNTS, *WORKER_COUNTS))
        self.statistics |= dict.fromkeys(PRODUCER_COUNTS if identity.component == "producer" else WORKER_COUNTS, 0)

    def apply(self, event: Event) -> None:
        """Update the state by one event."""
        handler = _HANDLERS.get(type(event))
        if handler:
            handler(self, event)

    def probed(self, event: events.Probed) -> None:
        """Keep the result of a probe; the mail servers are well when those of all accounts are."""
        known = self.checks.get(event.dependency)
        if known is None:
            return
        took = round(event.seconds * 1000, 3)
        if event.account is None:
            self._check(known, took, event.error, ok=event.ok)
            return
        failed = self._server_failures
        before = failed.pop(event.account, None)
        if event.error is not None:  # an open breaker does not replace the real cause
            failed[event.account] = before if before and isinstance(event.error, CircuitBreakerError) else event.error
        self._check(known, took, next(iter(failed.values()), None), ok=not failed)

    def _forget_server(self, account: str) -> None:
        """Forget whether the mail server of an account answers: nobody connects for it now."""
        known = self.checks.get("imap")
        if self._server_failures.pop(account, None) is not None and known:
            if self._server_failures:
                self._check(known, None, next(iter(self._server_failures.values())), ok=False)
            else:
                self.checks["imap"] = Check(known.name, known.critical)

    def breaker_changed(self, event: events.BreakerChanged) -> None:
        """Mark a dependency whose breaker opened as unhealthy, since it is not probed while the breaker is open."""
        known = self.checks.get(event.name)
        if known and event.error:
            self._check(known, None, event.error, ok=False)
        elif known and event.new == "CLOSED" and known.status == "unhealthy":  # its trials have succeeded
            failed = next(iter(self._server_failures.values()), None) if event.name == "imap" else None
            self._check(known, None, failed, ok=failed is None)

    def redis_failed(self, event: events.RedisFailed) -> None:
        """Mark Redis as unhealthy before the next probe finds out; an open breaker does not replace the real cause."""
        known = self.checks.get("redis")
        rejected = isinstance(event.error, CircuitBreakerError)
        if known and is_redis_failure(event.error) and not (rejected and known.status == "unhealthy"):
            self._check(known, None, event.error, ok=False)
        if event.loop:
            self.loop_failed(event)

    def loop_failed(self, event: events.LoopFailed | events.RedisFailed) -> None:
        """Keep the failure of a loop until it has gone well for a while; an open breaker does not replace its cause."""
        now, unforeseen = self._ticks(), is_unforeseen(event.error)
        before = self.loop_failures.get(event.loop)
        if before is None or before.shown_until < now or not before.lasting:
            before = LoopFailure("", unforeseen, before.count if before else 0, now, now)
        reason = describe_error(event.error)
        if is_thread_shortage(event.error):
            reason = f"{describe_unforeseen(event.error)}: no thread can be started ({describe_thread_limits()})"
        if unforeseen and not isinstance(event.error, (ConfigurationError, OperationFailed)):  # those say what to do
            reason = f"{describe_unforeseen(event.error)}, which nobody foresaw"
        self.loop_failures[event.loop] = LoopFailure(
            before.reason if before.reason and isinstance(event.error, CircuitBreakerError) else reason,
            unforeseen,
            before.count + 1,
            before.since,
            math.inf if event.retry_in is None else now + event.retry_in + SHOWN_SECONDS[unforeseen],
        )

    def loop_recovered(self, event: events.LoopRecovered) -> None:
        """Forget the failure of a loop; one that nobody foresaw is shown for a while."""
        failure = self.loop_failures.pop(event.loop, None)
        if failure and failure.unforeseen:
            self.loop_failures[event.loop] = replace(failure, lasting=False)

    def shown_loop_failures(self) -> dict[str, LoopFailure]:
        """Return the failures of loops that still count, by loop."""
        now = self._ticks()
        return {loop: failure for loop, failure in self.loop_failures.items() if now < failure.shown_until}

    def connected(self, event: events.Connected) -> None:
        """Clear the account's problems after a login."""
        self._logging_in_works(event.account)
        account = self.accounts.get(event.account)
        state = "valid" if account and account.authorization == "re-authorize" else account and account.authorization
        self.account(event.account, reauth_required=False, authorization=state)

    def account_failed(self, event: events.ConnectionFailed | events.NeedsOperator | events.TokenRefreshFailed) -> None:
        """Keep the problem of an account."""
        self.account_problems[event.account] = describe_error(event.error)
        if isinstance(event, events.NeedsOperator):
            self._forget_server(event.account)
        refused = isinstance(event, events.TokenRefreshFailed) and event.permanent
        if isinstance(event.error, OAuth2AuthenticationError) and event.error.is_of_client:
            self.account(event.account, reauth_required=False, authorization="client refused")
        elif refused or isinstance(event.error, OAuth2AuthenticationError):
            self.account(event.account, reauth_required=True, authorization="re-authorize")
        elif isinstance(event, events.TokenRefreshFailed):
            self.account(event.account, authorization="refresh failing")

    def token_refreshed(self, event: events.TokenRefreshed) -> None:
        """Keep a new token; where consent was missing, only the next login shows whether the token suffices."""
        account = self.accounts.get(event.account)
        if account and not account.reauth_required:
            self._logging_in_works(event.account)
        self.account(
            event.account,
            token_expires_at=event.expires_at,
            authorization="re-authorize" if account and account.reauth_required else "valid",
            consent_ends_at=event.consent_ends_at,
        )

    def _logging_in_works(self, account: str) -> None:
        """Drop what was wrong with an account, unless it was a stall: that came after a login, too."""
        if not self.account_problems.get(account, "").startswith(STALLED):
            self.account_problems.pop(account, None)

    def synced(self, event: events.Synced) -> None:
        """Keep the result of a synchronization."""
        self.account_problems.pop(event.account, None)
        failure = self.loop_failures.get(f"watch:{event.account}")
        if failure and not failure.unforeseen:  # what was away is back
            del self.loop_failures[f"watch:{event.account}"]
        self.account(
            event.account,
            mailbox=event.mailbox,
            uidvalidity=event.uidvalidity,
            last_uid=event.last_uid,
            backlog=event.backlog,
            last_success=self._clock(),
        )

    def account_updated(self, event: events.AccountUpdated) -> None:
        """Know an account that came, and forget one that was removed; of a paused one only that it is."""
        if event.change in {"changed", "hidden"}:
            return
        for known in (self.account_problems, self.paused_accounts):
            known.pop(event.account, None)
        if event.change in {"paused", "removed"}:
            self._forget_server(event.account)
        self.loop_failures.pop(f"watch:{event.account}", None)
        if event.change == "removed":
            self.accounts.pop(event.account, None)
        else:
            paused = event.change == "paused"
            self.accounts[event.account] = AccountState(event.account, watch="paused" if paused else None)

    def lease_changed(self, event: events.LeaseChanged) -> None:
        """Forget an account's problems and numbers when another process reads it from now on."""
        if event.holder:
            self._forget_server(event.account)
            self.account_problems.pop(event.account, None)
            self.paused_accounts.pop(event.account, None)
            self.account(event.account, backlog=None, last_success=None, quarantine={})

    def quarantined(self, event: events.Quarantined) -> None:
        """Add a message to the quarantine of its mailbox."""
        account = self.accounts.get(event.account)
        known = account.quarantine.get(event.mailbox, QuarantineState()) if account else QuarantineState()
        messages = {**known.messages, event.uid: str(event.error)}
        self._quarantine(event.account, event.mailbox, QuarantineState(messages, known.accepted))

    def quarantine_counted(self, event: events.QuarantineCounted) -> None:
        """Keep the quarantine of a mailbox as it was read."""
        self._quarantine(event.account, event.mailbox, QuarantineState(dict(event.messages), event.accepted))

    def _quarantine(self, name: str, mailbox: str, state: QuarantineState) -> None:
        account = self.accounts.get(name)
        if account:
            self.account(name, quarantine={**account.quarantine, mailbox: state})

    def watcher_rebuilt(self, event: events.WatcherRebuilt) -> None:
        """Keep until the next synchronization that a watcher was given up."""
        server = "the mail server sends hardly a byte, or none"
        other = "it waits for the database, Redis or a disk, and has asked the mail server nothing"
        cause = server if event.asked_server else other
        self.account_problems[event.account] = f"{STALLED} for {event.seconds:.0f} s and was replaced: {cause}"

    def answer_slow(self, event: events.AnswerSlow) -> None:
        """Keep that an answer of the mail server hardly comes, or drop it when it is there."""
        if event.seconds:
            self.account_problems[event.account] = (
                f"{SLOW_ANSWER} has been coming for {event.seconds:.0f} s at a trickle, and mail stands still until it "
                "is there: look at the network to the server"
            )
        elif self.account_problems.get(event.account, "").startswith(SLOW_ANSWER):
            del self.account_problems[event.account]

    def fetch_paused(self, event: events.FetchPaused) -> None:
        """Keep the reason of a pause, or drop it when fetching goes on."""
        if event.reason:
            self.paused_accounts[event.account] = event.reason
        else:
            self.paused_accounts.pop(event.account, None)

    def delivered(self, event: events.Delivered) -> None:
        """Count a message either as processed or as a duplicate."""
        self.count("duplicates" if event.duplicate else "processed", 1)

    def dead_lettered(self, event: events.DeadLettered) -> None:
        """Count a dead letter, and its last attempt as failed unless it is poison or an operator moved it."""
        self.count("dead_lettered", 1)
        if event.error and event.reason != "operator":
            self.count("failed", 1)

    def sink_called(self, event: events.SinkCalls) -> None:
        """Keep the running calls of a sink, and what is wrong with them."""
        self.sink_calls[event.sink] = event.calls
        self.sink_problems.pop(event.sink, None)
        if event.problem:
            self.sink_problems[event.sink] = event.problem

    def sink_backlog(self, event: events.SinkBacklog) -> None:
        """Keep since when the oldest message waits for a sink; forget it when none does, or that is unknown."""
        self.sinks_oldest.pop(event.sink, None)
        if event.oldest is not None:
            self.sinks_oldest[event.sink] = event.oldest
        if event.waiting is None:
            return  # it still waits, for all that is known
        before = self.sink_waits.pop(event.sink, None)
        if event.waiting or event.resends:
            resends = None if event.waiting else event.resends
            same = before and (before.oldest, before.resends) == (event.oldest, resends)
            since = before.since if before and same else self._ticks()
            self.sink_waits[event.sink] = SinkWait(event.oldest, resends, since, event.reason)

    def change_backlog(self, event: events.ChangeBacklog) -> None:
        """Keep why a sink takes no changes."""
        key = f"{event.sink} (changes)"
        self.sink_problems.pop(key, None)
        if event.problem:
            self.sink_problems[key] = event.problem

    def account(self, name: str, **changes: Any) -> None:
        """Update the record of an account; an unknown account is ignored."""
        if name in self.accounts:
            self.accounts[name] = replace(self.accounts[name], **changes)

    def count(self, statistic: str, by: int) -> None:
        """Add to a statistic; an unknown one counts from 0."""
        self.statistics[statistic] = (self.statistics[statistic] or 0) + by

    def _check(self, known: Check, took: float | None, error: Exception | None, *, ok: bool) -> None:
        self.checks[known.name] = Check(
            known.name,
            known.critical,
            "healthy" if ok else "unhealthy",
            took,
            describe_error(error) if error else None,
            error_type(error) if error else None,
            self._clock(),
            self._ticks(),
        )


def is_redis_failure(error: Exception) -> bool:
    """Return whether an error is about Redis, and not about another dependency a loop waits for in the same way."""
    if isinstance(error, CircuitBreakerError):
        return error.name == "redis"
    return isinstance(error, RedisConnectionError)


def _set(name: str, value_of: Callable[[Any], Any]) -> Callable[[ProcessState, Any], None]:
    return lambda facts, event: setattr(facts, name, value_of(event))


_HANDLERS: dict[type[Event], Callable[[ProcessState, Any], None]] = {
    events.Started: _set("started", lambda _event: True),
    events.Stopping: _set("draining", lambda event: event.reason),
    events.AnswerSlow: ProcessState.answer_slow,
    events.WatcherRebuilt: ProcessState.watcher_rebuilt,
    events.FetchPaused: ProcessState.fetch_paused,
    events.AccountUpdated: ProcessState.account_updated,
    events.LeaseChanged: ProcessState.lease_changed,
    events.Probed: ProcessState.probed,
    events.BreakerChanged: ProcessState.breaker_changed,
    events.RedisFailed: ProcessState.redis_failed,
    events.LoopFailed: ProcessState.loop_failed,
    events.LoopRecovered: ProcessState.loop_recovered,
    events.Connected: ProcessState.connected,
    events.ConnectionFailed: ProcessState.account_failed,
    events.NeedsOperator: ProcessState.account_failed,
    events.TokenRefreshFailed: ProcessState.account_failed,
    events.TokenRefreshed: ProcessState.token_refreshed,
    events.Synced: ProcessState.synced,
    events.Quarantined: ProcessState.quarantined,
    events.QuarantineCounted: ProcessState.quarantine_counted,
    events.CommandsRefused: lambda facts, event: facts.account(event.account, refused=event.commands),
    events.ServerAlert: lambda facts, event: facts.account(
        event.account,
        alert=event.notice,
        alerted_at=facts._clock(),  # noqa: SLF001 - a method of that class
    ),
    events.Watching: lambda facts, event: facts.account(event.account, watch=event.state),
    events.HistoryWalked: lambda facts, event: facts.account(
        event.account, history=HistoryState(event.remaining, event.done, event.seconds)
    ),
    events.BytesSpent: lambda facts, event: facts.account(
        event.account, bytes_today=event.today, byte_budget=event.budget
    ),
    events.Published: lambda facts, event: facts.count("produced", event.count),
    events.Delivered: ProcessState.delivered,
    events.Deferred: lambda facts, _event: facts.count("failed", 1),
    events.DeadLettered: ProcessState.dead_lettered,
    events.SinkCalls: ProcessState.sink_called,
    events.SinkBacklog: ProcessState.sink_backlog,
    events.ChangeBacklog: ProcessState.change_backlog,
    events.Reclaimed: lambda facts, event: facts.count("orphans_claimed", event.count),
}


@dataclass(frozen=True, slots=True)
class LoopState:
    """A loop at this moment; ages in seconds."""

    name: str
    last_iteration_age_seconds: float
    allowed_silence_seconds: float

    @property
    def ok(self) -> bool:
        """Whether it still counts as turning."""
        return self.last_iteration_age_seconds <= self.allowed_silence_seconds


class LoopMonitor:
    """Knows when each loop turned last, which loops have stalled; thread-safe.

    A loop's time starts when it is first watched, so that a loop that never turns is noticed too.
    """

    def __init__(self, allowed: Mapping[str, float], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._ticked_at: dict[str, float] = {}
        self._allowed: dict[str, float] = {}
        for name, silence in allowed.items():
            self.watch(name, silence)

    def watch(self, name: str, allowed_silence: float) -> None:
        """Expect `name` to turn at least every `allowed_silence` seconds from now on."""
        with self._lock:
            self._ticked_at[name] = self._clock()
            self._allowed[name] = allowed_silence

    def forget(self, name: str) -> None:
        """Stop watching a loop that ended on purpose."""
        with self._lock:
            self._allowed.pop(name, None)

    def ticked(self, name: str) -> None:
        """Record that a loop has completed an iteration."""
        with self._lock:
            self._ticked_at[name] = self._clock()

    def states(self) -> list[LoopState]:
        """Return the state of every watched loop."""
        with self._lock:
            now = self._clock()
            return [
                LoopState(name, round(now - self._ticked_at[name], 3), self._allowed[name]) for name in self._allowed
            ]

    def stalled(self) -> dict[str, float]:
        """Return the seconds of silence of every loop that has not turned for longer than allowed."""
        return {loop.name: loop.last_iteration_age_seconds for loop in self.states() if not loop.ok}

    def silent(self, loops: Collection[str], seconds: float) -> dict[str, float]:
        """Return the seconds of silence of those of `loops` that have not turned for so long."""
        ages = {loop.name: loop.last_iteration_age_seconds for loop in self.states()}
        return {loop: ages[loop] for loop in loops if ages.get(loop, 0.0) > seconds}
