"""Which loops have turned lately and which have stalled; it starts, stops and announces nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoopState:
    """A loop as it is now; ages in seconds."""

    name: str
    last_iteration_age_seconds: float
    allowed_silence_seconds: float

    @property
    def ok(self) -> bool:
        """Whether it still counts as turning."""
        return self.last_iteration_age_seconds <= self.allowed_silence_seconds


class Loops:
    """Thread-safe; a loop's time starts when it is watched, so that one that never turns is noticed too."""

    def __init__(self, allowed: Mapping[str, float], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._turned: dict[str, float] = {}
        self._allowed: dict[str, float] = {}
        for name, silence in allowed.items():
            self.watch(name, silence)

    def watch(self, name: str, allowed_silence: float) -> None:
        """Expect `name` to turn at least every `allowed_silence` seconds from now on."""
        with self._lock:
            self._turned[name] = self._clock()
            self._allowed[name] = allowed_silence

    def forget(self, name: str) -> None:
        """The loop ended on purpose."""
        with self._lock:
            self._allowed.pop(name, None)

    def turned(self, name: str) -> None:
        """The loop completed an iteration."""
        with self._lock:
            self._turned[name] = self._clock()

    def states(self) -> list[LoopState]:
        """Every watched loop."""
        with self._lock:
            now = self._clock()
            return [LoopState(name, round(now - self._turned[name], 3), self._allowed[name]) for name in self._allowed]

    def stalled(self) -> dict[str, float]:
        """The loops that have not turned for longer than allowed, each with its seconds of silence."""
        return {loop.name: loop.last_iteration_age_seconds for loop in self.states() if not loop.ok}
