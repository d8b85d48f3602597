"""Which of the accounts this process reads now: takes their leases, prolongs them, and tells who waits for one.

One thread asks for all of them at once, and does nothing else: where hundreds of others work, a lease must not lapse
for want of a moment. It decides nothing about what may be written: the append script does. What is believed here only
spares connections that could not deliver.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from email_ingestion.errors import TransientError
from email_ingestion.events import LoopFailed, LoopTick, Observe
from email_ingestion.stream import Leases

LOOP = "leases"
BEAT_SECONDS = 2.0


class Tenure:
    """`start` it, `close` it; every method may be called from any thread."""

    def __init__(self, leases: Leases, accounts: Sequence[str], observe: Observe) -> None:
        self._leases = leases
        self._accounts = tuple(accounts)
        self._observe = observe
        self._changed = threading.Condition()
        self._holders: dict[str, str | None] = {}  # who reads each account, None: we do
        self._closed = threading.Event()
        self._again = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=LOOP, daemon=True)

    def start(self) -> None:
        """Begin to take and prolong."""
        self._thread.start()

    def close(self) -> None:
        """Take no more, and give up what is ours if Redis answers, so that others need not wait."""
        self._closed.set()
        self._again.set()
        self._thread.join()
        try:
            self._leases.release(self._accounts)
        except TransientError:
            return  # they lapse

    def holds(self, account: str, within: float = 0.0) -> bool:
        """Whether the account is ours now, or becomes so `within` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._ours(account), within)

    def holder(self, account: str) -> str | None:
        """The seat of the process that reads the account, as far as it is known and another."""
        holder = self._holders.get(account)
        return holder.partition(" ")[0] if holder else None

    def doubt(self, account: str) -> None:
        """Redis refused a write for want of the lease: it is not ours before that was asked for anew."""
        with self._changed:
            self._holders.pop(account, None)
        self._again.set()

    def _ours(self, account: str) -> bool:
        return account in self._holders and self._holders[account] is None

    def _keep(self) -> None:
        while not self._closed.is_set():
            self._again.clear()
            try:
                self._beat()
            except TransientError:
                pass  # Redis is away, which other loops tell: nothing can be written, so nothing need be given up
            except Exception as error:  # noqa: BLE001 - leases must go on being prolonged, whatever was met
                self._observe(LoopFailed(LOOP, error))
            self._observe(LoopTick(LOOP))
            self._again.wait(BEAT_SECONDS)

    def _beat(self) -> None:
        others = self._leases.renew(self._accounts)
        with self._changed:
            self._holders = {account: others.get(account) for account in self._accounts}
            self._changed.notify_all()
