"""One account's daily download budget, as its watcher spends it: asked for before, settled by what really came."""

from __future__ import annotations

from email_ingestion.events import BytesSpent, Observe
from email_ingestion.stream import Allowance
from email_ingestion.stream.allowance import Spending

HISTORY_SHARE = 0.8  # the rest is kept for new mail
SETTLE_BYTES = 4096


class Budget:
    """For the watcher's thread alone. Its methods raise like `Link.run`."""

    def __init__(self, account: str, allowance: Allowance, limit: int, observe: Observe) -> None:
        self._account = account
        self._allowance = allowance
        self._limit = limit
        self._observe = observe
        self._asked = 0  # since it was last settled
        self._received = 0  # on this connection, when it was last settled

    def ask(self, size: int, share: float = 1.0) -> bool:
        """Whether `size` bytes may be downloaded now; `share` is how much of the budget they may draw on."""
        spending = self._allowance.ask(size, int(self._limit * share))
        if spending.granted:
            self._asked += size
        self._tell(spending)
        return spending.granted

    def settle(self, received: int, *, last: bool = False) -> None:
        """Count what came, `received` bytes on this connection so far, instead of what was asked for."""
        difference = received - self._received - self._asked
        if abs(difference) >= SETTLE_BYTES or last:
            self._tell(self._allowance.correct(difference))
            self._received, self._asked = (0, 0) if last else (received, 0)

    def _tell(self, spending: Spending) -> None:
        self._observe(BytesSpent(self._account, spending.today, self._limit))
