"""A circuit breaker: pybreaker behind one gate, with a single probe while half-open and a monotonic clock.

`call()` of pybreaker holds a lock around the protected function, and its `calling()` lets every thread through while
half-open; its own time-out reads the wall clock, which may step. So the gate decides when a probe is due, and
pybreaker counts. An operator may override both and force the breaker open or closed for a limited time.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeVar

from email_ingestion.errors import CircuitBreakerError
from email_ingestion.events import BreakerChanged, BreakerRejected, BreakerState, Observe
from email_ingestion.modules_left_out import without_modules

with without_modules("redis"):  # for a storage that we do not use; the stream alone speaks to Redis
    import pybreaker

STATES: dict[str, BreakerState] = {
    pybreaker.STATE_CLOSED: "CLOSED",
    pybreaker.STATE_OPEN: "OPEN",
    pybreaker.STATE_HALF_OPEN: "HALF_OPEN",
}
ForcedState = Literal["OPEN", "CLOSED"]
T = TypeVar("T")
NEVER = timedelta(days=36500).total_seconds()


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When a breaker opens and closes; `recovery_timeout` in seconds."""

    fail_max: int = 5
    recovery_timeout: float = 30.0
    success_threshold: int = 2


@dataclass(frozen=True, slots=True)
class BreakerSnapshot:
    """One line of `/status`."""

    name: str
    state: BreakerState
    failure_count: int
    success_count: int
    fail_max: int
    recovery_timeout: float
    success_threshold: int
    retry_after_seconds: float | None
    forced: bool
    last_error: str | None
    last_error_type: str | None
    last_state_change: str | None


class Breaker(pybreaker.CircuitBreakerListener):
    """Guards one dependency. The errors `counted` are failures; everything else is a success.

    So is an error that concerns one account: the others share the breaker.
    """

    def __init__(
        self,
        name: str,
        policy: BreakerPolicy,
        counted: tuple[type[Exception], ...],
        observe: Observe,
        clock: Callable[[], float] = time.monotonic,
        *,
        open_from_start: bool = False,
    ) -> None:
        """`open_from_start`: it counts as open from the start of the call that opened it.

        For a dependency that fails by silence: while a call waits in vain, the dependency has its rest.
        """
        self.name = name
        self._policy = policy
        self._counted = counted
        self._observe = observe
        self._clock = clock
        self._open_from_start = open_from_start
        self._probe_lock = threading.Lock()
        self._override_lock = threading.Lock()
        self._override: tuple[ForcedState, float] | None = None  # by an operator, and when it ends by the clock
        self._opened_at = 0.0
        self._last_error: BaseException | None = None
        self._last_change: datetime | None = None
        self._breaker = pybreaker.CircuitBreaker(
            fail_max=policy.fail_max,
            reset_timeout=NEVER,
            success_threshold=policy.success_threshold,
            exclude=[lambda error: not isinstance(error, counted) or getattr(error, "concerns_one_account", False)],
            listeners=[self],
            throw_new_error_on_trip=False,
        )

    @property
    def state(self) -> BreakerState:
        """The forced state, else the state of pybreaker: OPEN until a probe is made, even when one is due."""
        return self._forced() or self._automatic

    @property
    def _automatic(self) -> BreakerState:
        return STATES[self._breaker.current_state]

    @property
    def closed(self) -> bool:
        """Whether calls go through."""
        return self.state == "CLOSED"

    @property
    def is_forced(self) -> bool:
        """Whether an operator holds it in its state."""
        return self._forced() is not None

    def retry_after(self) -> float:
        """Return the seconds until a probe is allowed; 0 when a call would be made now."""
        override = self._override
        if override and self._forced() == "OPEN":
            return max(0.0, override[1] - self._clock())
        if self.state != "OPEN":
            return 0.0
        return max(0.0, self._opened_at + self._policy.recovery_timeout - self._clock())

    def allow_probe(self) -> None:
        """Make a probe due now: something else has shown that the dependency is back."""
        self._opened_at = -math.inf

    def force(self, state: ForcedState, seconds: float) -> None:
        """Force the breaker open or closed for `seconds`; meanwhile nothing is counted.

        Afterwards it has the state from before it was forced open; after it was forced closed, it is closed.
        """
        before = self.state
        with self._override_lock:
            self._override = (state, self._clock() + seconds)
        if state == "CLOSED":
            self._breaker.close()
        self._changed(before)

    def release(self) -> None:
        """End a forced state."""
        before = self.state
        with self._override_lock:
            self._override = None
        self._changed(before)

    def _forced(self) -> ForcedState | None:
        """Return the forced state, if any; the first call after its end announces the end."""
        override = self._override
        if override is None or self._clock() < override[1]:
            return override[0] if override else None
        with self._override_lock:
            if self._override is not override:  # another thread saw its end, or forced a new state
                return self._override[0] if self._override else None
            self._override = None
        if override[0] != self._automatic:
            self._announce(override[0], self._automatic)
        return None

    def _changed(self, before: BreakerState) -> None:
        after = self.state
        if after != before:
            self._announce(before, after)

    def _announce(self, old: BreakerState, new: BreakerState, error: Exception | None = None) -> None:
        self._last_change = datetime.now(UTC)
        self._observe(BreakerChanged(self.name, old, new, error))

    def run(self, call: Callable[[], T]) -> T:
        """Return the result of `call`. Raises CircuitBreakerError without calling while open, or what `call` raises."""
        forced = self._forced()
        if forced == "OPEN":
            raise self._rejection()
        if forced == "CLOSED":
            return call()
        began = self._clock()
        try:
            if self.closed:
                with self._breaker.calling():
                    return call()
            return self._probe(call)
        except pybreaker.CircuitBreakerError as error:  # another thread tripped it meanwhile
            raise self._rejection() from error
        except self._counted:
            if self._open_from_start and self._opened_at > began:
                self._opened_at = began
            raise

    def _probe(self, call: Callable[[], T]) -> T:
        if self.retry_after() > 0 or not self._probe_lock.acquire(blocking=False):
            raise self._rejection()
        try:
            if self.state == "OPEN":
                self._breaker.half_open()
            with self._breaker.calling():
                return call()
        finally:
            self._probe_lock.release()

    def _rejection(self) -> CircuitBreakerError:
        error = CircuitBreakerError(self.name, self.retry_after())
        self._observe(BreakerRejected(self.name, error))
        return error

    def failure(self, cb: pybreaker.CircuitBreaker, exc: BaseException) -> None:
        """Called by pybreaker."""
        del cb
        self._last_error = exc

    def state_change(
        self,
        cb: pybreaker.CircuitBreaker,
        old_state: pybreaker.CircuitBreakerState | None,
        new_state: pybreaker.CircuitBreakerState,
    ) -> None:
        """Called by pybreaker."""
        del cb
        self._opened_at = self._clock()
        if self._forced():
            return  # a call from before it was forced: the visible state does not change
        old = STATES[old_state.name] if old_state else "CLOSED"
        new = STATES[new_state.name]
        if new == old:
            return  # a call that began before it tripped has failed as well
        error = self._last_error if new == "OPEN" and isinstance(self._last_error, Exception) else None
        self._announce(old, new, error)

    def snapshot(self) -> BreakerSnapshot:
        """Return the breaker as `/status` shows it."""
        state = self.state
        return BreakerSnapshot(
            name=self.name,
            state=state,
            failure_count=self._breaker.fail_counter,
            success_count=self._breaker.success_counter,
            fail_max=self._policy.fail_max,
            recovery_timeout=self._policy.recovery_timeout,
            success_threshold=self._policy.success_threshold,
            retry_after_seconds=None if state == "CLOSED" else round(self.retry_after(), 3),
            forced=self.is_forced,
            last_error=str(self._last_error) if self._last_error else None,
            last_error_type=type(self._last_error).__name__ if self._last_error else None,
            last_state_change=self._last_change.isoformat() if self._last_change else None,
        )
