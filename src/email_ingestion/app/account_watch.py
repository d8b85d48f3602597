"""Notices within seconds what changes among the accounts of the database, and has the process take it up.

While the database is away the accounts stay as they were known. It costs one query of a small table every few seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from email_ingestion.app.account_list import AccountList, adopt_consent, merge_accounts
from email_ingestion.background import PeriodicThread
from email_ingestion.errors import ConfigurationError, EmailIngestionError
from email_ingestion.events import AccountChange, AccountUpdated, LoopFailed, Observe
from email_ingestion.settings import Account, Settings

if TYPE_CHECKING:  # it loads SQLAlchemy, which waits for the first look
    from email_ingestion.ledger.accounts import AccountRow
    from email_ingestion.ledger.store import Ledger

LOOP = "accounts"
LOOK_SECONDS = 3.0
AWAY_SECONDS = 6.0  # while the database is away, which others ask too
ENDING = frozenset({"paused", "removed"})  # changes after which an account is not read
PATIENCE_SECONDS = 20.0  # without any answer of the database since the start, until that is told


class AccountWatch:
    """`start` and `close` it; `apply` gets the accounts to read whenever they change, `show` a reason by its name."""

    def __init__(
        self,
        settings: Settings,
        ledger: Callable[[], Ledger],
        known: AccountList,
        *,
        apply: Callable[[AccountList], None],
        show: Callable[[str, str | None], None],
        observe: Observe,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._known = known
        self._apply = apply
        self._show = show
        self._observe = observe
        self._rows: tuple[AccountRow, ...] | None = None  # of the last look
        self._started = time.monotonic()
        self._shown_broken: frozenset[str] = frozenset()
        self._thread = PeriodicThread(LOOP, LOOK_SECONDS, self._look, immediate=True, on_error=self._failed)

    def start(self) -> None:
        """Start the thread."""
        self._started = time.monotonic()
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._thread.close(0)

    def _look(self) -> float:
        try:
            rows = self._ledger().accounts.rows()
        except EmailIngestionError as error:
            self._tell_away(error)
            return AWAY_SECONDS
        self._show(LOOP, None)
        if rows != self._rows:
            self._take_up(merge_accounts(self._settings, rows))
            self._rows = rows
        return LOOK_SECONDS

    def _tell_away(self, error: EmailIngestionError) -> None:
        """Say that changes are not noticed, where there may be any."""
        never_asked = self._rows is None and time.monotonic() - self._started > PATIENCE_SECONDS
        if never_asked or self._known.stored or not self._known.accounts:
            self._show(LOOP, f"the database cannot be asked for them, and they stay as they are known: {error}")

    def _take_up(self, found: AccountList) -> None:
        """Hand on what is to be read now; an account that is wrong now goes on as it was."""
        before = {account.name: account for account in self._known.accounts}
        active = {account.name: account for account in found.accounts}
        broken = dict(found.broken)
        for name in found.stored:
            if name in active:
                try:
                    adopt_consent(active[name], found.stored[name])
                except ConfigurationError as error:
                    broken[name] = str(error)
        kept = [name for name in broken if name in before and name not in active]
        merged = AccountList(
            (*active.values(), *(before[name] for name in kept)), found.paused, broken, found.hidden, found.stored
        )
        changes = list(self._changes(before, merged))
        for name, change in changes:
            if change not in ENDING:  # what is announced of an account finds it known
                self._observe(AccountUpdated(name, change))
        self._apply(merged)
        for name, change in changes:
            if change in ENDING:
                self._observe(AccountUpdated(name, change))
        self._tell_broken(broken, kept)
        self._known = merged

    def _changes(self, before: dict[str, Account], now: AccountList) -> Iterator[tuple[str, AccountChange]]:
        active = {account.name: account for account in now.accounts}
        paused = {account.name for account in now.paused}
        was_paused = {account.name for account in self._known.paused}
        yield from ((name, "paused") for name in sorted(paused - was_paused))
        for name, account in active.items():
            if name not in before:
                yield name, "resumed" if name in was_paused else "added"
            elif account != before[name]:
                yield name, "changed"
        yield from ((name, "removed") for name in sorted((before.keys() | was_paused) - active.keys() - paused))
        yield from ((name, "hidden") for name in now.hidden if name not in self._known.hidden)

    def _tell_broken(self, broken: dict[str, str], kept: list[str]) -> None:
        for name in self._shown_broken - broken.keys():
            self._show(_condition(name), None)
        for name, why in broken.items():
            self._show(_condition(name), why + ("; it is read as it was before" if name in kept else ""))
        self._shown_broken = frozenset(broken)

    def _failed(self, error: Exception) -> None:
        self._observe(LoopFailed(LOOP, error, LOOK_SECONDS))


def _condition(name: str) -> str:
    return f"account {name}"
