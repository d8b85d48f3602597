"""Overrides of operators for a limited time: a pause, a lower level of service, a minimum priority.

    DEGRADED     older mail and the periodic reconcile wait; new mail is served
    MINIMAL      all sinks but the database wait as well; the database keeps their pending deliveries
    MAINTENANCE  everything waits: the process is paused

An override is for this process alone or, through Redis, for all processes. It ends by itself, so that a forgotten one
cannot stop the system for ever. An override for all processes stays active while Redis is away.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Level = Literal["NORMAL", "DEGRADED", "MINIMAL", "MAINTENANCE"]
Scope = Literal["process", "fleet"]
LEVELS: tuple[Level, ...] = get_args(Level)  # from full service to none
PAUSE = "pause"
LEVEL = "level"
PRIORITY = "priority"
MAX_PRIORITY = 10


@dataclass(frozen=True, slots=True)
class Override:
    """An override as it is given: `value` is a level of service, a minimum priority, or empty for a pause."""

    value: str
    seconds: float  # until it ends, from the time it is given or read
    by: str


@dataclass(frozen=True, slots=True)
class ActiveOverride:
    """An override in force."""

    value: str
    until: float  # by the clock of OperatorOverrides
    by: str
    scope: Scope


class OperatorOverrides:
    """The overrides in force for one process; thread-safe. `clock` is monotonic, in seconds.

    `min_priority` is the minimum that the process was started with; overrides only raise it.
    """

    def __init__(self, component: str, clock: Callable[[], float] = time.monotonic, min_priority: int = 0) -> None:
        self._floor = min_priority
        self.component = component
        self._clock = clock
        self._lock = threading.Lock()
        self._overrides: dict[tuple[str, Scope], ActiveOverride] = {}

    def pause(self, seconds: float, by: str) -> None:
        """Take no new work for `seconds`."""
        self._set(PAUSE, Override("", seconds, by), "process")

    def resume(self) -> None:
        """End a pause of this process alone."""
        with self._lock:
            self._overrides.pop((PAUSE, "process"), None)

    def set_level(self, level: Level, seconds: float, by: str) -> None:
        """Serve at `level` for `seconds`; NORMAL ends such an override."""
        if level == "NORMAL":
            with self._lock:
                self._overrides.pop((LEVEL, "process"), None)
        else:
            self._set(LEVEL, Override(level, seconds, by), "process")

    def prioritize(self, min_priority: int, seconds: float, by: str) -> None:
        """Leave mail of a lower priority in the stream for `seconds`; 0 ends such an override."""
        if min_priority == 0:
            with self._lock:
                self._overrides.pop((PRIORITY, "process"), None)
        else:
            self._set(PRIORITY, Override(str(min_priority), seconds, by), "process")

    def apply_shared(self, shared: Mapping[str, Override]) -> None:
        """Apply the overrides for all processes, by name, as Redis has them now; end the ones that are gone."""
        for subject, name in ((PAUSE, f"{PAUSE}:{self.component}"), (LEVEL, LEVEL), (PRIORITY, PRIORITY)):
            if name in shared:
                self._set(subject, shared[name], "fleet")
            else:
                with self._lock:
                    self._overrides.pop((subject, "fleet"), None)

    def active_pause(self) -> ActiveOverride | None:
        """Return the override that pauses this process, or None."""
        level = self.active_level()
        pauses = self._active(PAUSE) + ([level] if level and level.value == "MAINTENANCE" else [])
        return max(pauses, key=lambda each: each.until, default=None)

    def active_level(self) -> ActiveOverride | None:
        """Return the override for the lowest level of service, or None when the level is NORMAL."""
        return max(self._active(LEVEL), key=lambda each: LEVELS.index(_level(each.value)), default=None)

    def active_priority(self) -> ActiveOverride | None:
        """Return the override for the highest minimum priority, or None."""
        return max(self._active(PRIORITY), key=lambda each: _priority(each.value), default=None)

    @property
    def min_priority(self) -> int:
        """The priority below which mail waits; 0 for none."""
        override = self.active_priority()
        return max(self._floor, _priority(override.value) if override else 0)

    @property
    def level(self) -> Level:
        """The level of service now."""
        override = self.active_level()
        return _level(override.value) if override else "NORMAL"

    def is_at_or_below(self, level: Level) -> bool:
        """Return whether the level of service is `level` or a lower one."""
        return LEVELS.index(self.level) >= LEVELS.index(level)

    def remaining(self, override: ActiveOverride) -> float:
        """Return the seconds until an override ends."""
        return max(0.0, override.until - self._clock())

    def _set(self, subject: str, override: Override, scope: Scope) -> None:
        with self._lock:
            self._overrides[subject, scope] = ActiveOverride(
                override.value, self._clock() + override.seconds, override.by, scope
            )

    def _active(self, subject: str) -> list[ActiveOverride]:
        with self._lock:
            now = self._clock()
            return [each for (about, _), each in self._overrides.items() if about == subject and each.until > now]


def _priority(value: str) -> int:
    """Parse a priority; take an unknown value of another release for the most careful one."""
    return min(int(value), MAX_PRIORITY) if value.isdecimal() else MAX_PRIORITY


def _level(value: str) -> Level:
    """Parse a level; take an unknown level of a newer release for the most careful one."""
    return next((level for level in LEVELS if level == value), "MAINTENANCE")
