"""Which process reads an account: a lease for each, which the append script asks for in the same step as it writes.

So it does not matter what a process believes, or how long it slept: without the lease nothing of it gets in. Here
leases are taken, prolonged and given up; when to do so is the caller's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from email_ingestion.stream.connection import RedisLink, text
from email_ingestion.stream.keys import Keys

LEASE_SECONDS = 10.0  # from the last sign of a dead holder until somebody else may take over


class Leases:
    """The leases of one process. Safe for several threads."""

    def __init__(self, link: RedisLink, seat: str, term: str) -> None:
        """`seat` names a place where one process runs at a time, `term` this very life of it; neither has blanks."""
        self._link = link
        self._seat = seat
        self._term = term
        self._hold = link.script("hold_accounts")
        self._leave = link.script("leave_accounts")

    @property
    def owner(self) -> str:
        """Who we are, as a lease says it."""
        return f"{self._seat} {self._term}"

    def renew(self, accounts: Sequence[str]) -> dict[str, str]:
        """Take and prolong; returns the accounts that are not ours, and who has each.

        Past the breaker, so that leases heal as soon as Redis does. Raises RedisConnectionError.
        """
        args: list[str | int] = [self._seat, self._term, int(LEASE_SECONDS * 1000)]
        others: dict[str, str] = {}
        for here in self._by_partition(accounts):
            found = self._link.call_unguarded(partial(self._hold, keys=self._keys(here), args=args))
            others |= {account: text(who) for account, who in zip(here, found, strict=True) if who}
        return others

    def release(self, accounts: Sequence[str]) -> None:
        """Give up what is ours; raises RedisConnectionError."""
        for here in self._by_partition(accounts):
            self._link.call_unguarded(partial(self._leave, keys=self._keys(here), args=[self.owner]))

    def _keys(self, accounts: Sequence[str]) -> list[str]:
        return [self._link.keys_for(account).lease(account) for account in accounts]

    def _by_partition(self, accounts: Sequence[str]) -> list[list[str]]:
        """A script touches the keys of one partition."""
        there: dict[Keys, list[str]] = {}
        for account in accounts:
            there.setdefault(self._link.keys_for(account), []).append(account)
        return list(there.values())
