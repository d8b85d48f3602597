"""Records as the JSON of the contract, section 3: names, order, units; decides nothing.

Ages are seconds before `now`; what is unknown is null, never 0.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from email_ingestion.breaker import BreakerSnapshot
from email_ingestion.ops.process_state import LoopState
from email_ingestion.ops.redaction import redact
from email_ingestion.ops.status_records import (
    CONSENT_WARNING,
    AccountState,
    Check,
    HistoryState,
    Peer,
    RedisState,
    TokenState,
)
from email_ingestion.overrides import ActiveOverride, OperatorOverrides

QUARANTINED_SHOWN = 100  # messages of each mailbox; `email-ingestion quarantine list` has all of them


def iso_timestamp(seconds: float | None) -> str | None:
    """Format Unix seconds as ISO 8601 in UTC with milliseconds."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def redacted(text: str | None) -> str | None:
    """Redact a text for the answers, which need no authorization."""
    return None if text is None else redact(text)


def loop(state: LoopState) -> dict[str, Any]:
    """Return one entry of `loops` in `/health`."""
    return {
        "name": state.name,
        "last_iteration_age_seconds": state.last_iteration_age_seconds,
        "allowed_silence_seconds": state.allowed_silence_seconds,
        "ok": state.ok,
    }


def breaker(snapshot: BreakerSnapshot) -> dict[str, Any]:
    """Return one entry of `circuit_breakers`."""
    return asdict(snapshot) | {"last_error": redacted(snapshot.last_error)}


def check(state: Check, tick: float) -> dict[str, Any]:
    """Return one entry of `checks`; `tick` in monotonic seconds."""
    return {
        "name": state.name,
        "status": state.status,
        "critical": state.critical,
        "response_time_ms": state.response_time_ms,
        "error": redacted(state.error),
        "error_type": state.error_type,
        "checked_at": iso_timestamp(state.checked_at),
        "age_seconds": _age(state.checked_tick, tick),
    }


def stream(name: str | None, redis: RedisState | None, collected_at: float | None, now: float) -> dict[str, Any]:
    """Return `stream`; `collected_at` is when Redis was last read, even if it cannot be read any more."""
    state = redis.stream if redis else None
    return {
        "name": name,
        "depth": state.depth if state else None,
        "pending": state.pending if state else None,
        "waiting": state.waiting if state else None,
        "oldest_age_seconds": _age(state.oldest_timestamp, now) if state else None,
        "max_deliveries": state.max_deliveries if state else None,
        "ok": state is not None,
        "collected_at": iso_timestamp(collected_at),
    }


def dlq(name: str | None, redis: RedisState | None, now: float) -> dict[str, Any]:
    """Return `dlq`."""
    state = redis.dlq if redis else None
    return {
        "name": name,
        "depth": state.depth if state else None,
        "oldest_age_seconds": _age(state.oldest_timestamp, now) if state else None,
    }


def account(state: AccountState, now: float) -> dict[str, Any]:
    """Return one entry of `accounts`."""
    return {
        "name": state.name,
        "mailbox": state.mailbox,
        "watch": state.watch,
        "refused": list(state.refused),
        "alert": redacted(state.alert),
        "alert_age_seconds": _age(state.alerted_at, now),
        "last_uid": state.last_uid,
        "uidvalidity": state.uidvalidity,
        "backlog": state.backlog,
        "last_success_age_seconds": _age(state.last_success, now),
        "history": _history(state.history),
        "bytes_today": state.bytes_today,
        "byte_budget": state.byte_budget,
        "token_expires_in_seconds": None if state.token_expires_at is None else round(state.token_expires_at - now, 3),
        "token_state": token_state(state, now),
        "consent_expires_in_seconds": None if state.consent_ends_at is None else round(state.consent_ends_at - now, 3),
        "reauth_required": state.reauth_required,
        "quarantined": [
            {"mailbox": mailbox, "uid": uid, "reason": redacted(why)}
            for mailbox, each in state.quarantine.items()
            for uid, why in sorted(each.messages.items())[:QUARANTINED_SHOWN]
        ],
        "quarantine_accepted": sum(each.accepted for each in state.quarantine.values()),
    }


def _history(state: HistoryState | None) -> dict[str, Any] | None:
    """Return how far older mail has been read; None before the first connection."""
    if state is None:
        return None
    eta = None if state.seconds is None else round(state.seconds, 1)
    return {"remaining": state.remaining, "percent": round(100 * state.done, 1), "eta_seconds": eta}


def token_state(state: AccountState, now: float) -> TokenState | None:
    """Return the state of the account's token: `expiring` while it works and its consent is about to end."""
    ends = state.consent_ends_at
    ending = ends is not None and ends - now < CONSENT_WARNING
    return "expiring" if state.authorization == "valid" and ending else state.authorization


def peer(state: Peer, now: float) -> dict[str, Any]:
    """Return one entry of `peers`."""
    return {
        "component": state.component,
        "instance": state.instance,
        "pid": state.pid,
        "alive": state.alive,
        "ready": state.ready,
        "ops_url": state.ops_url,
        "seen_age_seconds": _age(state.seen_at, now),
    }


def clocks(redis: RedisState | None) -> list[dict[str, Any]]:
    """Return `clocks`: the clock of this machine against those of servers."""
    offset = redis.clock_offset if redis else None
    return [{"server": "redis", "offset_seconds": None if offset is None else round(offset, 3)}]


def overrides(state: OperatorOverrides) -> dict[str, Any]:
    """Return `control`: the overrides of operators that are in force."""
    pause, level = state.active_pause(), state.active_level()
    return {
        "paused": pause is not None,
        "pause": _override(state, pause),
        "level": state.level,
        "degradation": _override(state, level),
        "min_priority": state.min_priority,
        "priority": _override(state, state.active_priority()),
        "orders": [
            {"name": name, "value": each.value} | (_override(state, each) or {}) for name, each in state.orders()
        ],
    }


def _override(state: OperatorOverrides, override: ActiveOverride | None) -> dict[str, Any] | None:
    if override is None:
        return None
    return {
        "by": redacted(override.by),
        "scope": override.scope,
        "ends_in_seconds": round(state.remaining(override), 3),
    }


def _age(then: float | None, now: float) -> float | None:
    return None if then is None else round(max(0.0, now - then), 3)
