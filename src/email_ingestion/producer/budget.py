"""One account's daily download budget, as its watcher spends it: asked for before, settled by what really came."""

from __future__ import annotations

from email_ingestion.events import BytesSpent, Observe
from email_ingestion.stream import DownloadQuota

HISTORY_SHARE = 0.8  # the rest is kept for new mail
# So much is asked for at once, where less is wanted, for each time is a round trip to a Redis that may be busy: but not
# more than this part of what is left, nor than was spent on the connection, or crash upon crash would use up the day.
STRIDE_BYTES = 8 * 1024 * 1024
STRIDE_PART = 1 / 64


class Budget:
    """For the watcher's thread alone. Its methods raise like `RedisLink.call`."""

    def __init__(self, account: str, allowance: DownloadQuota, limit: int, observe: Observe) -> None:
        self._account = account
        self._allowance = allowance
        self._limit = limit
        self._observe = observe
        self._today = 0  # used in the last day, by all processes, with what is in hand here
        self._in_hand = 0  # granted and not spent
        self._granted_of = 0  # the limit that was for
        self._spent = 0  # since it was last settled
        self._received = 0  # on this connection, when it was last settled

    def ask(self, size: int, share: float = 1.0) -> bool:
        """Whether `size` bytes may be downloaded now; `share` is how much of the budget they may draw on."""
        limit = int(self._limit * share)
        granted = (self._in_hand >= size and self._granted_of <= limit) or self._draw(size, limit)
        if granted:
            self._in_hand -= size
            self._spent += size
        self._tell(self._today - self._in_hand if granted else self._today)
        return granted

    def _draw(self, size: int, limit: int) -> bool:
        stride = min(STRIDE_BYTES, int((limit - self._today) * STRIDE_PART), self._received + self._spent)
        drawn = max(size, stride)
        spending = self._allowance.reserve(drawn, limit)
        self._today = spending.today
        if spending.granted:
            self._in_hand += drawn
            self._granted_of = limit
        return spending.granted

    def settle(self, received: int, *, last: bool = False) -> None:
        """Count what came, `received` bytes on this connection so far, instead of what was asked for.

        After the `last` time on a connection nothing is in hand.
        """
        self._in_hand += self._spent - (received - self._received)
        self._spent, self._received = 0, 0 if last else received
        if last or self._in_hand < 0:
            self._today = self._allowance.adjust(-self._in_hand).today
            self._in_hand = 0
            self._tell(self._today)

    def _tell(self, today: int) -> None:
        self._observe(BytesSpent(self._account, today, self._limit))
