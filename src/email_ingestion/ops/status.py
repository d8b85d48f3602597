"""The status board of one process: keeps what was observed and handed in, answers `/health`, `/ready` and `/status`.

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
from email_ingestion.ops import report
from email_ingestion.ops.facts import Facts
from email_ingestion.ops.loops import Loops
from email_ingestion.ops.records import Breakers, Identity, Names, Peer, RedisState
from email_ingestion.ops.verdict import Condition, Picture, Verdict, judge
from email_ingestion.overrides import OperatorOverrides

REDIS_EXPIRES = 30.0  # seconds after which a reading of Redis is no longer shown: its reader hangs
CHECKS_EXPIRE = 60.0  # seconds after which a critical dependency that nobody asks counts as failing


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
        control: OperatorOverrides | None = None,
    ) -> None:
        self.identity = identity
        self.loops = Loops(names.loops, ticks)
        self._names = names
        self._breakers = breakers
        self._control = control or OperatorOverrides(identity.component, ticks)
        self._clock = clock
        self._ticks = ticks
        self._lock = threading.Lock()
        self._facts = Facts(identity, names, clock)
        self._conditions: dict[str, Condition] = {}
        self._peers: tuple[Peer, ...] = ()
        self._redis: RedisState | None = None
        self._redis_at = 0.0  # Unix seconds of the last reading that succeeded
        self._redis_tick = float("-inf")
        self._born = (clock(), ticks())

    def __call__(self, event: Event) -> None:
        """Observe an event."""
        if isinstance(event, LoopTick):
            self.loops.turned(event.loop)
            return
        with self._lock:
            self._facts.note(event)

    def set_condition(self, name: str, reason: str | None, *, critical: bool = False) -> None:
        """Say what is wrong with `name`, or with None that nothing is any more."""
        with self._lock:
            if reason is None:
                self._conditions.pop(name, None)
            else:
                self._conditions[name] = Condition(reason, critical)

    def set_peers(self, peers: Sequence[Peer]) -> None:
        """The other processes, as they were seen last."""
        with self._lock:
            self._peers = tuple(peers)

    def collect(self, read: Callable[[], RedisState]) -> None:
        """Keep what `read` returns; when it raises a TransientError, Redis counts as unreadable until the next time.

        `read` may wait: it is called outside the lock, and on a thread of the caller's.
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
        """The latest reading of Redis; None when it failed or is too old to be shown."""
        with self._lock:
            fresh = self._ticks() - self._redis_tick <= REDIS_EXPIRES
            return self._redis if fresh else None

    def verdict(self) -> Verdict:
        """Whether the process is ready."""
        breakers = self._breakers()
        stalled = self.loops.stalled()
        asked = orders(self._control)
        with self._lock:
            facts = self._facts
            picture = Picture(
                now=self._clock(),
                started=facts.started,
                draining=facts.draining,
                held=dict(facts.held),
                checks=tuple(facts.checks.values()),
                breakers=breakers,
                sinks=self._names.sinks,
                accounts=tuple(facts.accounts.values()),
                troubles=dict(facts.troubles),
                conditions={**self._conditions, **asked},
                stalled=stalled,
                checks_expire=CHECKS_EXPIRE,
            )
        return judge(picture)

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Liveness, which looks at our own loops and nothing else, and the body of `/health`."""
        stalled = self.loops.stalled()
        body = {
            **self._heading("stalled" if stalled else "alive"),
            "reasons": [f"loop {name} has not turned for {seconds:.0f} s" for name, seconds in stalled.items()],
            "loops": [report.loop(state) for state in self.loops.states()],
        }
        return not stalled, body

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Readiness and the body of `/ready`."""
        verdict = self.verdict()
        with self._lock:
            checks = tuple(self._facts.checks.values())
        body = {
            **self._heading(verdict.status),
            "reasons": [report.fit(reason) for reason in verdict.reasons],
            "checks": [report.check(it, self._clock()) for it in checks],
        }
        return verdict.ok, body

    def report(self) -> dict[str, Any]:
        """The body of `/status`: every key is always there, what is unknown is null."""
        verdict = self.verdict()
        redis = self.redis()
        now = self._clock()
        breakers = [report.breaker(it) for it in self._breakers()]
        with self._lock:
            return {
                **self._heading(verdict.status),
                "reasons": [report.fit(reason) for reason in verdict.reasons],
                "circuit_breakers": breakers,
                "checks": [report.check(it, now) for it in self._facts.checks.values()],
                "stream": report.stream(self._names.stream, redis, self._redis_at or None, now),
                "dlq": report.dlq(self._names.dlq, redis, now),
                "accounts": [report.account(it, now) for it in self._facts.accounts.values()],
                "statistics": dict(self._facts.statistics),
                "peers": [report.peer(it, now) for it in self._peers],
                "control": report.control(self._control),
            }

    def _heading(self, status: str) -> dict[str, Any]:
        born_at, born_tick = self._born
        return {
            "component": self.identity.component,
            "instance": self.identity.instance,
            "status": status,
            "version": self.identity.version,
            "pid": os.getpid(),
            "started_at": report.iso(born_at),
            "uptime_seconds": round(self._ticks() - born_tick, 3),
            "timestamp": report.iso(self._clock()),
        }


def orders(control: OperatorOverrides) -> dict[str, Condition]:
    """What operators asked for, as conditions: the process works, only less."""
    pause, level = control.active_pause(), control.active_level()
    found = {}
    if pause:
        found["paused"] = Condition(f"by {pause.by}, for another {control.remaining(pause):.0f} s", critical=False)
    if level:
        reason = f"{level.value} by {level.by}, for another {control.remaining(level):.0f} s"
        found["degradation level"] = Condition(reason, critical=False)
    if control.min_priority and control.component == "worker":
        found["priority"] = Condition(f"only mail of priority {control.min_priority} or more is taken", critical=False)
    return found
