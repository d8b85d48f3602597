"""Takes and renews the leases of this process's accounts, and knows which other process has one.

One thread renews all of them in one call and does nothing else: where hundreds of watchers work, a lease must not lapse
for want of a moment. What it believes only spares connections that could not deliver; the append script decides what
may be written.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from email_ingestion.background import PeriodicThread
from email_ingestion.errors import TransientError
from email_ingestion.events import LoopFailed, LoopTick, Observe
from email_ingestion.stream import Leases

LOOP = "leases"
RENEW_SECONDS = 2.0


class LeaseRenewer:
    """`start` it, `close` it; every method may be called from any thread."""

    def __init__(self, leases: Leases, accounts: Sequence[str], observe: Observe) -> None:
        self._leases = leases
        self._accounts = tuple(accounts)
        self._observe = observe
        self._changed = threading.Condition()
        self._owners: dict[str, str | None] = {}  # by account; None: this process
        self._thread = PeriodicThread(LOOP, RENEW_SECONDS, self._run, immediate=True, on_error=self._failed)

    def start(self) -> None:
        """Begin to take and renew leases."""
        self._thread.start()

    def close(self) -> None:
        """Renew no more, and release the leases if Redis answers, so that other processes need not wait."""
        self._thread.close(timeout=None)
        try:
            self._leases.release(self._accounts)
        except TransientError:
            return  # they lapse

    def set_accounts(self, accounts: Sequence[str]) -> None:
        """Take and renew the leases of these accounts from now on, and release those of others if Redis answers."""
        with self._changed:
            gone = [account for account in self._accounts if account not in accounts]
            self._accounts = tuple(accounts)
            ours = [account for account in gone if self._is_ours(account)]
            for account in gone:
                self._owners.pop(account, None)
        self._thread.run_now()
        try:
            if ours:
                self._leases.release(ours)
        except TransientError:
            return  # they lapse

    def owns(self, account: str, timeout: float = 0.0) -> bool:
        """Tell whether this process has the account's lease, or gets it within `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._is_ours(account), timeout)

    def owner(self, account: str) -> str | None:
        """Return the instance id of the other process that reads the account, if one is known."""
        owner = self._owners.get(account)
        return owner.partition(" ")[0] if owner else None

    def invalidate(self, account: str) -> None:
        """Believe nothing of the lease until it was asked for again: Redis refused a write for want of it."""
        with self._changed:
            self._owners.pop(account, None)
        self._thread.run_now()

    def _is_ours(self, account: str) -> bool:
        return account in self._owners and self._owners[account] is None

    def _run(self) -> None:
        try:
            self._renew()
        except TransientError:
            pass  # Redis is away, which other loops report: nothing can be written, so nothing need be given up
        finally:
            self._observe(LoopTick(LOOP))

    def _failed(self, error: Exception) -> None:
        self._observe(LoopFailed(LOOP, error, RENEW_SECONDS))

    def _renew(self) -> None:
        accounts = self._accounts
        others = self._leases.renew(accounts)
        with self._changed:
            self._owners = {account: others.get(account) for account in accounts if account in self._accounts}
            self._changed.notify_all()
