"""Decides whether a process is ready and gives the reasons; pure: its inputs are handed in, nothing is contacted."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from email_ingestion.breaker import BreakerSnapshot
from email_ingestion.ops.status_records import CONSENT_WARNING, AccountState, Check, LoopFailure, SinkWait

HELD_UP_SECONDS = 20.0  # that the same message waits longest for a sink, after which the reason is told
STANDSTILL_SECONDS = 5.0  # of failures only, after which the main loop counts as doing nothing

ReadinessStatus = Literal["ready", "degraded", "not_ready", "starting", "draining"]


@dataclass(frozen=True, slots=True)
class Readiness:
    """The answer of `/ready`."""

    status: ReadinessStatus
    reasons: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether work gets done."""
        return self.status in {"ready", "degraded"}


@dataclass(frozen=True, slots=True)
class Condition:
    """A problem that another part of the process has reported; a critical one means that no work gets done."""

    reason: str
    critical: bool


@dataclass(frozen=True, slots=True)
class ReadinessInputs:
    """All that counts for readiness at one moment; `now` in Unix seconds, `tick` and `checks_expire` in monotonic ones.

    `account_problems` and `paused_accounts` give a reason by account, `sink_problems` one by sink,
    `sink_waits` what waits longest by sink, `stalled` and `slow` the seconds of silence and `loop_failures` the last
    failure by loop; without its `main_loop` the process does nothing.
    """

    now: float
    tick: float
    started: bool
    draining: str | None
    paused_accounts: Mapping[str, str]
    checks: Sequence[Check]
    breakers: Sequence[BreakerSnapshot]
    sinks: Collection[str]
    accounts: Sequence[AccountState]
    account_problems: Mapping[str, str]
    sink_problems: Mapping[str, str]
    sink_waits: Mapping[str, SinkWait]
    conditions: Mapping[str, Condition]
    stalled: Mapping[str, float]
    slow: Mapping[str, float]
    loop_failures: Mapping[str, LoopFailure]
    main_loop: str | None
    checks_expire: float


def evaluate(inputs: ReadinessInputs) -> Readiness:
    """Rank the reasons: draining, then what makes work impossible, then what is not known yet, then what hampers."""
    blocking = tuple(_blocking(inputs))
    unknown = tuple(f"{check.name}: no answer yet" for check in inputs.checks if _is_unknown(check))
    degrading = tuple(_degrading(inputs))
    if inputs.draining is not None:
        return Readiness("draining", (f"stopping: {inputs.draining}",))
    if blocking:
        return Readiness("not_ready", blocking + degrading)
    if not inputs.started or unknown:
        return Readiness("starting", (unknown or ("not started yet",)) + degrading)
    return Readiness("degraded", degrading) if degrading else Readiness("ready", ())


def _is_unknown(check: Check) -> bool:
    return check.critical and check.status == "unknown"


def _blocking(inputs: ReadinessInputs) -> Iterator[str]:
    yield from (f"loop {loop} has not turned for {seconds:.0f} s" for loop, seconds in inputs.stalled.items())
    yield from _conditions(inputs, critical=True)
    yield from (f"loop {loop}: {_describe_failure(each)}" for loop, each in _standstill(inputs).items())
    critical = {check.name for check in inputs.checks if check.critical}
    unavailable = _unavailable(inputs)
    yield from (reason for name, reason in unavailable if name in critical)
    if inputs.sinks and set(inputs.sinks) <= {name for name, _ in unavailable}:
        yield "no sink is usable"


def _degrading(inputs: ReadinessInputs) -> Iterator[str]:
    yield from (f"loop {loop} has not turned for {seconds:.0f} s" for loop, seconds in inputs.slow.items())
    yield from _conditions(inputs, critical=False)
    critical = {check.name for check in inputs.checks if check.critical}
    yield from (reason for name, reason in _unavailable(inputs) if name not in critical)
    yield from (
        f"circuit breaker {breaker.name} is HALF_OPEN" for breaker in inputs.breakers if breaker.state == "HALF_OPEN"
    )
    others = inputs.loop_failures.keys() - _standstill(inputs).keys()
    yield from (f"loop {loop}: {_describe_failure(inputs.loop_failures[loop])}" for loop in sorted(others))
    yield from (f"sink {name}: {problem}" for name, problem in inputs.sink_problems.items())
    yield from _held_up(inputs)
    yield from (f"account {name}: {problem}" for name, problem in inputs.account_problems.items())
    yield from (
        f"account {account.name}: the OAuth2 client is refused, so mail is fetched until its access token ends only: "
        "compare GOOGLE_CLIENT_SECRET and GOOGLE_CLIENT_ID with those in the provider's console"
        for account in inputs.accounts
        if account.authorization == "client refused" and account.name not in inputs.account_problems
    )
    yield from (
        f"account {account.name}: access token expired" for account in inputs.accounts if _expired(account, inputs)
    )
    yield from (
        f"account {account.name}: the consent ends in {(account.consent_ends_at - inputs.now) / 86400:.1f} days, "
        "run `python producer.py --auth-setup`"
        for account in inputs.accounts
        if account.consent_ends_at is not None and 0 < account.consent_ends_at - inputs.now < CONSENT_WARNING
    )
    yield from (_describe_quarantine(account) for account in inputs.accounts if account.quarantined)
    yield from (f"account {name}: fetching held, {reason}" for name, reason in inputs.paused_accounts.items())


def _held_up(inputs: ReadinessInputs) -> Iterator[str]:
    """Name the sinks that the same message waits for, whatever the reason, and even if nobody knows one."""
    for sink, wait in inputs.sink_waits.items():
        seconds = inputs.tick - wait.since
        if seconds > HELD_UP_SECONDS and sink not in inputs.sink_problems:
            yield f"sink {sink}: mail has waited for it for {seconds:.0f} s: {wait.reason or 'it does not move'}"


def _describe_quarantine(account: AccountState) -> str:
    """Name the first of the messages; `/status` has all of them."""
    uid, why = next((uid, why) for each in account.quarantine.values() for uid, why in sorted(each.messages.items()))
    count = account.quarantined
    named = f"UID {uid}: {why}" + (f", and {count - 1} more" if count > 1 else "")
    return f"account {account.name}: {count} quarantined, {named}; `email-ingestion quarantine list`"


def _standstill(inputs: ReadinessInputs) -> dict[str, LoopFailure]:
    """Return the main loop if it has done nothing but fail for a while: one failure may be over a second later."""
    found = inputs.loop_failures.get(inputs.main_loop or "")
    if found and inputs.main_loop and found.lasting and inputs.tick - found.since > STANDSTILL_SECONDS:
        return {inputs.main_loop: found}
    return {}


def _unavailable(inputs: ReadinessInputs) -> list[tuple[str, str]]:
    """List the dependencies that cannot be used, with the reason."""
    failing = [(check.name, reason) for check in inputs.checks if (reason := _failure(check, inputs))]
    open_breakers = [(it.name, _describe_open(it)) for it in inputs.breakers if it.state == "OPEN"]
    return failing + open_breakers


def _describe_open(breaker: BreakerSnapshot) -> str:
    return f"circuit breaker {breaker.name} is OPEN" + (", held by an operator" if breaker.forced else "")


def _describe_failure(failure: LoopFailure) -> str:
    return f"{failure.reason} ({failure.count} times)" if failure.count > 1 else failure.reason


def _failure(check: Check, inputs: ReadinessInputs) -> str | None:
    if check.status == "unhealthy":
        return f"{check.name}: {check.error or 'does not answer'}"
    if not check.critical or check.checked_tick is None:  # the others are only checked when there is work for them
        return None
    age = inputs.tick - check.checked_tick
    return f"{check.name}: not checked for {age:.0f} s" if age > inputs.checks_expire else None


def _expired(account: AccountState, inputs: ReadinessInputs) -> bool:
    return account.token_expires_at is not None and account.token_expires_at < inputs.now


def _conditions(inputs: ReadinessInputs, *, critical: bool) -> Iterable[str]:
    return (
        f"{name}: {condition.reason}" for name, condition in inputs.conditions.items() if condition.critical is critical
    )
