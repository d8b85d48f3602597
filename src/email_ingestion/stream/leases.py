"""Which process reads an account: a lease for each, which the append script checks in the same step as it writes.

So a process without the lease writes nothing, whatever it believes and however long it slept. Here leases are taken,
renewed and released; when to do so is decided by the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from email_ingestion.stream.keys import Keys
from email_ingestion.stream.redis_link import RedisLink, text

LEASE_SECONDS = 10.0  # from the last renewal of a dead owner until another process may take over


class Leases:
    """The leases of one process. Thread-safe."""

    def __init__(self, link: RedisLink, seat: str, term: str) -> None:
        """`seat` names a place where one process runs at a time, `term` the present life of it; neither has blanks."""
        self._link = link
        self._seat = seat
        self._term = term
        self._renew = link.script("renew_leases")
        self._release = link.script("release_leases")

    @property
    def owner(self) -> str:
        """This process, as it stands in a lease."""
        return f"{self._seat} {self._term}"

    def renew(self, accounts: Sequence[str]) -> dict[str, str]:
        """Take or renew leases; return the accounts that another process has, with its name.

        Past the breaker, so that leases heal as soon as Redis does. Raises RedisConnectionError.
        """
        args: list[str | int] = [self._seat, self._term, int(LEASE_SECONDS * 1000)]
        others: dict[str, str] = {}
        for here in self._by_partition(accounts):
            found = self._link.call_unguarded(partial(self._renew, keys=self._keys(here), args=args))
            others |= {account: text(owner) for account, owner in zip(here, found, strict=True) if owner}
        return others

    def release(self, accounts: Sequence[str]) -> None:
        """Give up the leases of this process; raises RedisConnectionError."""
        for here in self._by_partition(accounts):
            self._link.call_unguarded(partial(self._release, keys=self._keys(here), args=[self.owner]))

    def _keys(self, accounts: Sequence[str]) -> list[str]:
        return [self._link.keys_for(account).lease(account) for account in accounts]

    def _by_partition(self, accounts: Sequence[str]) -> list[list[str]]:
        """Group accounts: a script touches the keys of one partition."""
        there: dict[Keys, list[str]] = {}
        for account in accounts:
            there.setdefault(self._link.keys_for(account), []).append(account)
        return list(there.values())
