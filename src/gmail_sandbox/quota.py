"""The daily allowance as a fault: after so many bytes everybody is thrown out and logins are refused for a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .faults import Fault, Faults

OVER_QUOTA = "[OVERQUOTA] Account exceeded command or bandwidth limits."


class Quota:
    """Counts from the moment the fault `over_quota` is armed."""

    def __init__(self, faults: Faults, clock: Callable[[], float]) -> None:
        """Start with no limit."""
        self.on_exceeded: Callable[[Fault], None] = lambda _fault: None
        self._faults, self._clock = faults, clock
        self._sent = 0
        self._refused_until: float | None = None

    def begin(self, fault: Fault) -> None:
        """Start counting; a budget of 0 is exceeded at once."""
        self._sent, self._refused_until = 0, None
        if not fault.number("after_bytes"):
            self._exceed(fault)

    def end(self) -> None:
        """Stop limiting."""
        self._refused_until = None

    def spend(self, sent: int) -> None:
        """Count bytes sent to a client."""
        fault = self._faults.look("over_quota")
        if fault is None or self._refused_until is not None:
            return
        self._sent += sent
        if self._sent >= fault.number("after_bytes"):
            self._exceed(fault)

    def refusing(self) -> bool:
        """Tell whether the account is shut now; the fault is over when its time is."""
        if self._refused_until is None:
            return False
        if self._clock() < self._refused_until:
            return True
        self._faults.clear("over_quota")
        return False

    def _exceed(self, fault: Fault) -> None:
        self._refused_until = self._clock() + fault.number("login_refused_seconds")
        self.on_exceeded(fault)
