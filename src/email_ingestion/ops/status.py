"""The status board of one process: keeps what was observed and makes the answers of `/health`, `/ready`, `/status`.

Every answer comes from memory; the board contacts nothing and never waits.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from email_ingestion.errors import TransientError
from email_ingestion.events import Event, LoopTick
from email_ingestion.ops import status_json
from email_ingestion.ops.process_state import LoopMonitor, ProcessState
from email_ingestion.ops.readiness import Condition, Readiness, ReadinessInputs, evaluate
from email_ingestion.ops.status_records import Breakers, Identity, Names, Peer, RedisState
from email_ingestion.overrides import OperatorOverrides

REDIS_EXPIRES = 30.0  # seconds after which a reading of Redis is no longer shown: its reader hangs
SLOW_SECONDS = 25.0  # of silence of a loop that hands mail over, after which that is told
CHECKS_EXPIRE = 60.0  # seconds after which a critical dependency that is not checked counts as failing


class Status:
    """Thread-safe. `breakers` must not wait; `clock` gives Unix seconds, `ticks` monotonic ones."""

    def __init__(
        self,
        identity: Identity,
        names: Names,
        breakers: Breakers,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
        *,
        overrides: OperatorOverrides | None = None,
    ) -> None:
        self.identity = identity
        self.loops = LoopMonitor(names.loops, ticks)
        self._names = names
        self._breakers = breakers
        self._overrides = overrides or OperatorOverrides(identity.component, ticks)
        self._clock = clock
        self._ticks = ticks
        self._lock = threading.Lock()
        self._state = ProcessState(identity, names, clock, ticks)
        self._conditions: dict[str, Condition] = {}
        self._peers: tuple[Peer, ...] = ()
        self._redis: RedisState | None = None
        self._redis_at = 0.0  # Unix seconds of the last reading that succeeded
        self._redis_tick = float("-inf")
        self._born = (clock(), ticks())

    def __call__(self, event: Event) -> None:
        """Observe an event."""
        if isinstance(event, LoopTick):
            self.loops.ticked(event.loop)
            return
        with self._lock:
            self._state.apply(event)

    def set_condition(self, name: str, reason: str | None, *, critical: bool = False) -> None:
        """Set the problem of `name`, or clear it with None."""
        with self._lock:
            if reason is None:
                self._conditions.pop(name, None)
            else:
                self._conditions[name] = Condition(reason, critical)

    def set_peers(self, peers: Sequence[Peer]) -> None:
        """Set the other processes as they were seen last."""
        with self._lock:
            self._peers = tuple(peers)

    def collect(self, read: Callable[[], RedisState]) -> None:
        """Keep the result of `read`; when it raises a TransientError, Redis counts as unreadable until the next call.

        `read` may wait: it is called outside the lock, in the thread of the caller.
        """
        at, tick = self._clock(), self._ticks()  # a reading is as old as its beginning
        try:
            state: RedisState | None = read()
        except TransientError:
            state = None
        with self._lock:
            self._redis = state
            if state is not None:
                self._redis_at, self._redis_tick = at, tick

    def redis(self) -> RedisState | None:
        """Return the latest reading of Redis; None when it failed or is too old to be shown."""
        with self._lock:
            expired = self._ticks() - self._redis_tick > REDIS_EXPIRES
            return None if expired else self._redis

    def readiness(self) -> Readiness:
        """Decide whether the process is ready."""
        breakers = self._breakers()
        stalled, slow = self.loops.stalled(), self.loops.silent(self._names.flow, SLOW_SECONDS)
        conditions = override_conditions(self._overrides) | newer_entries_condition(self.redis())
        with self._lock:
            state = self._state
            inputs = ReadinessInputs(
                now=self._clock(),
                tick=self._ticks(),
                started=state.started,
                draining=state.draining,
                paused_accounts=dict(state.paused_accounts),
                checks=tuple(state.checks.values()),
                breakers=breakers,
                sinks=self._names.sinks,
                accounts=tuple(state.accounts.values()),
                account_problems=dict(state.account_problems),
                sink_problems=dict(state.sink_problems),
                sink_waits=dict(state.sink_waits),
                conditions={**self._conditions, **conditions},
                stalled=stalled,
                slow={loop: seconds for loop, seconds in slow.items() if loop not in stalled},
                loop_failures=state.shown_loop_failures(),
                main_loop=self._names.main_loop,
                checks_expire=CHECKS_EXPIRE,
            )
        return evaluate(inputs)

    def sink_calls(self) -> list[dict[str, Any]]:
        """Return the calls of sinks that have been running for a while; `since` in Unix seconds."""
        with self._lock:
            calls = dict(self._state.sink_calls)
        return [
            {"sink": sink, "email_id": email_id, "since": since}
            for sink, running in calls.items()
            for email_id, since in running
        ]

    def sinks_oldest(self) -> dict[str, float]:
        """Return since when the oldest message waits for each sink that one waits for, in Unix seconds."""
        with self._lock:
            return dict(self._state.sinks_oldest)

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Return whether our own loops turn, on which alone liveness depends, and the body of `/health`."""
        stalled = self.loops.stalled()
        body = {
            **self._heading("stalled" if stalled else "alive"),
            "reasons": [f"loop {name} has not turned for {seconds:.0f} s" for name, seconds in stalled.items()],
            "loops": [status_json.loop(state) for state in self.loops.states()],
        }
        return not stalled, body

    def full_health(self) -> tuple[bool, dict[str, Any]]:
        """Return whether loops, checks and circuit breakers are all well, and the body of `/health?full=1`.

        Liveness is not the question here: a dependency that is away makes it unhealthy, and no restart mends that.
        """
        alive, body = self.health()
        with self._lock:
            checks = [status_json.check(it, self._ticks()) for it in self._state.checks.values()]
        breakers = [status_json.breaker(it) for it in self._breakers()]
        unhealthy = [f"check {it['name']}" for it in checks if it["status"] == "unhealthy"]
        unhealthy += [f"circuit breaker {it['name']}" for it in breakers if it["state"] == "OPEN"]
        return alive and not unhealthy, {
            **body,
            "reasons": [*body["reasons"], *(f"{name} is unhealthy" for name in unhealthy)],
            "unhealthy": unhealthy,
            "checks": checks,
            "circuit_breakers": breakers,
        }

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Return whether the process is ready and the body of `/ready`."""
        readiness = self.readiness()
        with self._lock:
            checks = tuple(self._state.checks.values())
        body = {
            **self._heading(readiness.status),
            "reasons": [status_json.redacted(reason) for reason in readiness.reasons],
            "checks": [status_json.check(it, self._ticks()) for it in checks],
        }
        return readiness.ok, body

    def report(self) -> dict[str, Any]:
        """Return the body of `/status`: every key is always there, an unknown value is None."""
        readiness = self.readiness()
        redis = self.redis()
        now = self._clock()
        breakers = [status_json.breaker(it) for it in self._breakers()]
        with self._lock:
            return {
                **self._heading(readiness.status),
                "reasons": [status_json.redacted(reason) for reason in readiness.reasons],
                "circuit_breakers": breakers,
                "checks": [status_json.check(it, self._ticks()) for it in self._state.checks.values()],
                "stream": status_json.stream(self._names.stream, redis, self._redis_at or None, now),
                "dlq": status_json.dlq(self._names.dlq, redis, now),
                "accounts": [status_json.account(it, now) for it in self._state.accounts.values()],
                "statistics": dict(self._state.statistics),
                "peers": [status_json.peer(it, now) for it in self._peers],
                "clocks": status_json.clocks(redis),
                "control": status_json.overrides(self._overrides),
            }

    def _heading(self, status: str) -> dict[str, Any]:
        born_at, born_tick = self._born
        return {
            "component": self.identity.component,
            "instance": self.identity.instance,
            "status": status,
            "version": self.identity.version,
            "pid": os.getpid(),
            "started_at": status_json.iso_timestamp(born_at),
            "uptime_seconds": round(self._ticks() - born_tick, 3),
            "timestamp": status_json.iso_timestamp(self._clock()),
        }


def newer_entries_condition(redis: RedisState | None) -> dict[str, Condition]:
    """Return as a condition that the stream holds entries that workers of this release cannot read."""
    if redis is None or not redis.stream.newer:
        return {}
    reason = (
        f"{redis.stream.newer} entries are of a newer release's schema version: an upgrade or a rollback is under way; "
        "they stay pending for a worker of that release"
    )
    return {"stream": Condition(reason, critical=False)}


def override_conditions(overrides: OperatorOverrides) -> dict[str, Condition]:
    """Return the overrides in force as conditions: the process works, but it does less."""
    pause, level = overrides.active_pause(), overrides.active_level()
    found = {}
    if pause:
        found["paused"] = Condition(f"by {pause.by}, for another {overrides.remaining(pause):.0f} s", critical=False)
    if level:
        reason = f"{level.value} by {level.by}, for another {overrides.remaining(level):.0f} s"
        found["degradation level"] = Condition(reason, critical=False)
    if overrides.min_priority and overrides.component == "worker":
        found["priority"] = Condition(
            f"only mail of priority {overrides.min_priority} or more is taken", critical=False
        )
    return found
