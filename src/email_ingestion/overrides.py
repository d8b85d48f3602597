"""What operators have asked of this process for a while: to pause, or to serve less; it decides nothing else.

    DEGRADED     older mail and audits wait for better times; new mail comes first anyway
    MINIMAL      and so do all sinks but the database, which notes what it owes them
    MAINTENANCE  and everything else: the process is paused

or to take only mail of a certain priority, while the rest waits.

An order comes to this process alone or, through Redis, to all of them. Each ends by itself, so that a forgotten one
cannot hold the system up for ever; orders for all hold on while Redis is away.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Level = Literal["NORMAL", "DEGRADED", "MINIMAL", "MAINTENANCE"]
Scope = Literal["process", "fleet"]
LEVELS: tuple[Level, ...] = get_args(Level)  # the later, the less is served
PAUSE = "pause"
LEVEL = "level"
PRIORITY = "priority"
MOST_URGENT = 10


@dataclass(frozen=True, slots=True)
class Override:
    """Something asked for: `value` is a level of service, a least priority, or empty for a pause."""

    value: str
    seconds: float  # until it ends, counted from when it was given or read
    by: str


@dataclass(frozen=True, slots=True)
class ActiveOverride:
    """An order that holds."""

    value: str
    until: float  # by the clock of `Control`
    by: str
    scope: Scope


class OperatorOverrides:
    """Thread-safe; `clock` is monotonic, in seconds. It never goes below the priority `least`."""

    def __init__(self, component: str, clock: Callable[[], float] = time.monotonic, min_priority: int = 0) -> None:
        self._floor = min_priority
        self.component = component
        self._clock = clock
        self._lock = threading.Lock()
        self._overrides: dict[tuple[str, Scope], ActiveOverride] = {}

    def pause(self, seconds: float, by: str) -> None:
        """Take no new work for so long."""
        self._set(PAUSE, Override("", seconds, by), "process")

    def resume(self) -> None:
        """Take work again, as far as this process was asked alone."""
        with self._lock:
            self._overrides.pop((PAUSE, "process"), None)

    def set_level(self, level: Level, seconds: float, by: str) -> None:
        """Serve at this level for so long; NORMAL takes such an order back."""
        if level == "NORMAL":
            with self._lock:
                self._overrides.pop((LEVEL, "process"), None)
        else:
            self._set(LEVEL, Override(level, seconds, by), "process")

    def prioritize(self, min_priority: int, seconds: float, by: str) -> None:
        """Leave mail of a lower priority where it is for so long; 0 takes such an order back."""
        if min_priority == 0:
            with self._lock:
                self._overrides.pop((PRIORITY, "process"), None)
        else:
            self._set(PRIORITY, Override(str(min_priority), seconds, by), "process")

    def apply_shared(self, shared: Mapping[str, Override]) -> None:
        """These are the orders for all processes, as Redis has them now; others of this kind are taken back."""
        for subject, name in ((PAUSE, f"{PAUSE}:{self.component}"), (LEVEL, LEVEL), (PRIORITY, PRIORITY)):
            if name in shared:
                self._set(subject, shared[name], "fleet")
            else:
                with self._lock:
                    self._overrides.pop((subject, "fleet"), None)

    def active_pause(self) -> ActiveOverride | None:
        """The order that keeps this process from taking work, or None."""
        level = self.active_level()
        pauses = self._active(PAUSE) + ([level] if level and level.value == "MAINTENANCE" else [])
        return max(pauses, key=lambda each: each.until, default=None)

    def active_level(self) -> ActiveOverride | None:
        """The order for the lowest level of service that holds, or None when it is NORMAL."""
        return max(self._active(LEVEL), key=lambda each: LEVELS.index(_level(each.value)), default=None)

    def active_priority(self) -> ActiveOverride | None:
        """The order for the highest least priority that holds."""
        return max(self._active(PRIORITY), key=lambda each: _priority(each.value), default=None)

    @property
    def min_priority(self) -> int:
        """The priority below which mail waits; 0: none does."""
        order = self.active_priority()
        return max(self._floor, _priority(order.value) if order else 0)

    @property
    def level(self) -> Level:
        """The level of service that holds now."""
        order = self.active_level()
        return _level(order.value) if order else "NORMAL"

    def is_at_or_below(self, level: Level) -> bool:
        """Whether the level of service is this one or a lower one."""
        return LEVELS.index(self.level) >= LEVELS.index(level)

    def remaining(self, order: ActiveOverride) -> float:
        """Seconds until it ends."""
        return max(0.0, order.until - self._clock())

    def _set(self, subject: str, order: Override, scope: Scope) -> None:
        with self._lock:
            self._overrides[subject, scope] = ActiveOverride(
                order.value, self._clock() + order.seconds, order.by, scope
            )

    def _active(self, subject: str) -> list[ActiveOverride]:
        with self._lock:
            now = self._clock()
            return [each for (about, _), each in self._overrides.items() if about == subject and each.until > now]


def _priority(value: str) -> int:
    """What cannot be read, of another release, is taken for the most careful of those we know."""
    return min(int(value), MOST_URGENT) if value.isdecimal() else MOST_URGENT


def _level(value: str) -> Level:
    """A level this release does not know, of a newer one, is taken for the most careful of those it knows."""
    return next((level for level in LEVELS if level == value), "MAINTENANCE")
