"""Decides whether a process is ready, and why not; pure: everything it looks at is handed to it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from email_ingestion.ops.records import CONSENT_WARNING, AccountState, BreakerView, Check

Word = Literal["ready", "degraded", "not_ready", "starting", "draining"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer of `/ready`."""

    status: Word
    reasons: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether work gets done."""
        return self.status in {"ready", "degraded"}


@dataclass(frozen=True, slots=True)
class Condition:
    """Something wiring says is wrong; a critical one means that nothing gets done."""

    reason: str
    critical: bool


@dataclass(frozen=True, slots=True)
class Picture:
    """All that counts for readiness, at one moment; `now` and `checks_expire` in seconds."""

    now: float
    started: bool
    draining: str | None
    held: Mapping[str, str]
    checks: Sequence[Check]
    breakers: Sequence[BreakerView]
    sinks: Collection[str]
    accounts: Sequence[AccountState]
    troubles: Mapping[str, str]
    conditions: Mapping[str, Condition]
    stalled: Mapping[str, float]
    checks_expire: float


def judge(picture: Picture) -> Verdict:
    """Draining outranks all, then what makes work impossible, then what is not known yet, then what hampers."""
    fatal = tuple(_fatal(picture))
    unknown = tuple(f"{check.name}: no answer yet" for check in picture.checks if _awaited(check))
    hampering = tuple(_hampering(picture))
    if picture.draining is not None:
        return Verdict("draining", (f"stopping: {picture.draining}",))
    if fatal:
        return Verdict("not_ready", fatal + hampering)
    if not picture.started or unknown:
        return Verdict("starting", unknown or ("not started yet",))
    return Verdict("degraded", hampering) if hampering else Verdict("ready", ())


def _awaited(check: Check) -> bool:
    return check.critical and check.status == "unknown"


def _fatal(picture: Picture) -> Iterator[str]:
    yield from (f"loop {loop} has not turned for {seconds:.0f} s" for loop, seconds in picture.stalled.items())
    yield from _conditions(picture, critical=True)
    critical = {check.name for check in picture.checks if check.critical}
    faults = _faults(picture)
    yield from (reason for name, reason in faults if name in critical)
    if picture.sinks and set(picture.sinks) <= {name for name, _ in faults}:
        yield "no sink is usable"


def _hampering(picture: Picture) -> Iterator[str]:
    yield from _conditions(picture, critical=False)
    critical = {check.name for check in picture.checks if check.critical}
    yield from (reason for name, reason in _faults(picture) if name not in critical)
    yield from (
        f"circuit breaker {breaker.name} is HALF_OPEN" for breaker in picture.breakers if breaker.state == "HALF_OPEN"
    )
    yield from (f"account {name}: {trouble}" for name, trouble in picture.troubles.items())
    yield from (
        f"account {account.name}: access token expired" for account in picture.accounts if _expired(account, picture)
    )
    yield from (
        f"account {account.name}: the consent ends in {(account.consent_ends_at - picture.now) / 86400:.1f} days, "
        "run `python producer.py --auth-setup`"
        for account in picture.accounts
        if account.consent_ends_at is not None and 0 < account.consent_ends_at - picture.now < CONSENT_WARNING
    )
    yield from (f"account {name}: fetching held, {reason}" for name, reason in picture.held.items())


def _faults(picture: Picture) -> list[tuple[str, str]]:
    """Dependencies that cannot be used, with the reason."""
    failing = [(check.name, fault) for check in picture.checks if (fault := _fault(check, picture))]
    opened = [(it.name, _opened(it)) for it in picture.breakers if it.state == "OPEN"]
    return failing + opened


def _opened(breaker: BreakerView) -> str:
    return f"circuit breaker {breaker.name} is OPEN" + (", held by an operator" if breaker.forced else "")


def _fault(check: Check, picture: Picture) -> str | None:
    if check.status == "unhealthy":
        return f"{check.name}: {check.error or 'does not answer'}"
    if not check.critical or check.checked_at is None:  # the others are asked when there is something to ask for
        return None
    age = picture.now - check.checked_at
    return f"{check.name}: not checked for {age:.0f} s" if age > picture.checks_expire else None


def _expired(account: AccountState, picture: Picture) -> bool:
    return account.token_expires_at is not None and account.token_expires_at < picture.now


def _conditions(picture: Picture, *, critical: bool) -> Iterable[str]:
    return (
        f"{name}: {condition.reason}"
        for name, condition in picture.conditions.items()
        if condition.critical is critical
    )
