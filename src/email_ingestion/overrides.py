"""Overrides of operators for a limited time: a pause, a lower level of service, a minimum priority.

    DEGRADED     older mail and the periodic reconcile wait; new mail is served
    MINIMAL      all sinks but the database wait as well; the database keeps their pending deliveries
    MAINTENANCE  everything waits: the process is paused

Beside these there are orders about one part of the work: how many messages a worker takes at once, a feature that is
off, a sink that is paused, a sender whose mail is put aside.

An override is for this process alone or, through Redis, for all processes. It ends by itself, so that a forgotten one
cannot stop the system for ever. An override for all processes stays active while Redis is away.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

Level = Literal["NORMAL", "DEGRADED", "MINIMAL", "MAINTENANCE"]
Scope = Literal["process", "fleet"]
LEVELS: tuple[Level, ...] = get_args(Level)  # from full service to none
PAUSE = "pause"
LEVEL = "level"
PRIORITY = "priority"
MAX_PRIORITY = 10
# Orders about one part of the work; the latter three are followed by a name.
BATCH_SIZE, FEATURE, SINK, BLOCK = "batch-size", "feature:", "sink:", "block:"
Feature = Literal["audit", "canary", "history", "labels"]
FEATURES: tuple[Feature, ...] = get_args(Feature)
MAX_BATCH = 1000
MAX_NAME = 200  # characters


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


def check_order(name: str, value: str | None) -> str | None:
    """Return what is wrong with an order about one part of the work, or None; without a value it is taken back."""
    if len(name) > MAX_NAME or not name.isprintable():
        return f"an order's name has at most {MAX_NAME} printable characters"
    kind = next((each for each in (FEATURE, SINK, BLOCK) if name.startswith(each)), name)
    subject = name.removeprefix(kind)
    if kind == BATCH_SIZE:
        valid = value is None or (value.isascii() and value.isdecimal() and 1 <= int(value) <= MAX_BATCH)
        return None if valid else f"the batch size is a number from 1 to {MAX_BATCH}"
    if kind == FEATURE:
        return None if subject in FEATURES else f"the features are {', '.join(FEATURES)}"
    if kind == SINK:
        return None if subject else "name a sink"
    if kind == BLOCK:
        meant = subject.strip("*?@. ")
        return None if meant else "the pattern must say who is meant: *@flood.example; to stop all mail, pause"
    return f"there is no order {name!r}"


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
        orders = {name for name, override in shared.items() if check_order(name, override.value) is None}
        with self._lock:
            known = {subject for subject, scope in self._overrides if scope == "fleet"}
        names = {each: each for each in (*known, *orders, LEVEL, PRIORITY)} | {PAUSE: f"{PAUSE}:{self.component}"}
        for subject, name in names.items():
            if name in shared:
                self._set(subject, shared[name], "fleet")
            else:
                with self._lock:
                    self._overrides.pop((subject, "fleet"), None)

    def order(self, name: str, value: str, seconds: float, by: str) -> None:
        """Give this process an order about one part of its work for `seconds`; an empty value takes it back."""
        if value:
            self._set(name, Override(value, seconds, by), "process")
        else:
            with self._lock:
                self._overrides.pop((name, "process"), None)

    def orders(self) -> list[tuple[str, ActiveOverride]]:
        """Return the orders about parts of the work that are in force, by name."""
        with self._lock:
            now = self._clock()
            found = [(about, each) for (about, _), each in self._overrides.items() if each.until > now]
        return sorted(
            (each for each in found if each[0] not in {PAUSE, LEVEL, PRIORITY}),
            key=lambda each: (each[0], each[1].scope),
        )

    def batch_size(self, configured: int) -> int:
        """Return how many messages a worker takes at once; of two orders the smaller one holds."""
        return min((int(each.value) for each in self._active(BATCH_SIZE)), default=configured)

    def is_off(self, feature: Feature) -> bool:
        """Return whether a part of the work is switched off."""
        return bool(self._active(f"{FEATURE}{feature}"))

    def is_sink_paused(self, name: str) -> bool:
        """Return whether a sink gets nothing."""
        return bool(self._active(f"{SINK}{name}"))

    def paused_sinks(self) -> list[str]:
        """Return the sinks that get nothing."""
        return sorted({name.removeprefix(SINK) for name, _ in self.orders() if name.startswith(SINK)})

    def blocking_pattern(self, address: str) -> str | None:
        """Return the pattern by which the mail of a sender is put aside, None for most; its domain alone may match."""
        if not self._overrides:
            return None
        address = address.lower()
        for name, _ in self.orders():
            pattern = name.removeprefix(BLOCK)
            if name.startswith(BLOCK) and any(
                fnmatchcase(part, pattern) for part in (address, address.rpartition("@")[2])
            ):
                return pattern
        return None

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
