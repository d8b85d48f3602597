"""The supervisors of every account that this process reads; accounts come, change and go while it runs.

An account that changes is stopped and started anew, and the others notice nothing. A stopped one loses its lease only
once nothing of it runs: whatever a thread that hangs still tries to write, the append script refuses.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from email_ingestion.background import start_thread
from email_ingestion.breaker import Breaker
from email_ingestion.errors import IMAPConnectionError
from email_ingestion.producer import WatcherSupervisor
from email_ingestion.producer.lease_renewer import LeaseRenewer
from email_ingestion.settings import Account

if TYPE_CHECKING:
    from email_ingestion.app.runner import BreakerRegistry

END_SECONDS = 5.0  # for the watchers of an account that is stopped, before their connections are cut


@dataclass(slots=True)
class _AccountRun:
    account: Account
    supervisors: Sequence[WatcherSupervisor]
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self, stopped: Callable[[], bool]) -> None:
        for number, supervisor in enumerate(self.supervisors):
            name = f"keep-{self.account.name}-{number}"
            make = partial(threading.Thread, target=supervisor.run, name=name, daemon=True)
            self.threads.append(start_thread(make, supervisor.start_failed, stopped))

    def stop(self) -> None:
        for supervisor in self.supervisors:
            supervisor.stop()

    def join(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        for thread in self.threads:
            if thread.is_alive():
                thread.join(max(0.0, end - time.monotonic()))
        for supervisor, thread in zip(self.supervisors, self.threads, strict=True):
            if thread.is_alive():
                supervisor.watcher.abandon()


class AccountRuns:
    """`apply` and `stop` may be called from any thread; nothing runs before `start`."""

    def __init__(
        self, make_supervisors: Callable[[Account], Sequence[WatcherSupervisor]], leases: LeaseRenewer
    ) -> None:
        self._make_supervisors = make_supervisors
        self._leases = leases
        self._runs: dict[str, _AccountRun] = {}
        self._applying = threading.Lock()
        self._lock = threading.Lock()  # of the two below, and of what runs
        self._started = False
        self._stopped = threading.Event()

    @property
    def accounts(self) -> tuple[Account, ...]:
        """The accounts that are read now."""
        with self._lock:
            return tuple(run.account for run in self._runs.values())

    @property
    def supervisors(self) -> list[WatcherSupervisor]:
        """The supervisors of all their mailboxes."""
        with self._lock:
            return [supervisor for run in self._runs.values() for supervisor in run.supervisors]

    def apply(self, accounts: Sequence[Account]) -> None:
        """Read these accounts from now on, and no others."""
        with self._applying:
            wanted = {account.name: account for account in accounts}
            with self._lock:
                ended = [run for name, run in self._runs.items() if wanted.get(name) != run.account]
                for run in ended:
                    del self._runs[run.account.name]
            self._end(ended)
            self._leases.set_accounts(tuple(wanted))
            for name, account in wanted.items():
                if name not in self._runs:
                    self._begin(account)

    def start(self) -> None:
        """Begin to watch."""
        with self._lock:
            self._started = True
            for run in self._runs.values():
                run.start(self._stopped.is_set)

    def wait(self) -> None:
        """Wait until all watchers have ended after `stop`."""
        self._stopped.wait()
        for run in self._runs.values():
            for thread in filter(threading.Thread.is_alive, run.threads):
                thread.join()

    def stop(self) -> None:
        """End all watchers soon."""
        self._stopped.set()  # before the lock: who holds it may wait for a thread
        with self._lock:
            for run in self._runs.values():
                run.stop()

    def _begin(self, account: Account) -> None:
        run = _AccountRun(account, self._make_supervisors(account))
        with self._lock:
            if self._stopped.is_set():
                return
            self._runs[account.name] = run
            if self._started:
                run.start(self._stopped.is_set)

    def _end(self, runs: Sequence[_AccountRun]) -> None:
        for run in runs:
            run.stop()
        end = time.monotonic() + END_SECONDS
        for run in runs:
            run.join(max(0.0, end - time.monotonic()))


def breaker_names(accounts: Iterable[Account]) -> dict[str, str]:
    """Return the name of the circuit breaker of each account: those on one mail server share it.

    The first server's is `imap`; any other has the name of its first account besides.
    """
    names: dict[tuple[str, int], str] = {}
    accounts = tuple(accounts)
    for account in accounts:
        names.setdefault((account.imap_host, account.imap_port), f"imap:{account.name}" if names else "imap")
    return {each.name: names[each.imap_host, each.imap_port] for each in accounts}


class ServerBreakers:
    """The circuit breakers of the mail servers that are spoken to now, one for each, by `breaker_names`."""

    def __init__(self, registry: BreakerRegistry) -> None:
        """There always is `imap`."""
        self._registry = registry
        self._names: dict[tuple[str, int], str] = {}
        self._accounts: tuple[Account, ...] = ()
        self._breakers = {"imap": self._new("imap")}

    def serve(self, accounts: Sequence[Account]) -> list[str]:
        """Have a breaker for each server of these accounts, and none for others; return the names."""
        self._accounts = tuple(accounts)
        servers = {(each.imap_host, each.imap_port): each for each in reversed(accounts)}
        for server in self._names.keys() - servers.keys():
            self._drop(self._names.pop(server))
        for account in accounts:
            server = account.imap_host, account.imap_port
            if server not in self._names:
                name = self._names[server] = self._free_name(account)
                if name not in self._breakers:
                    self._breakers[name] = self._new(name)
        return list(self._breakers)

    def of(self, account: Account) -> Breaker:
        """Return the breaker of an account that is served."""
        return self._breakers[self._names[account.imap_host, account.imap_port]]

    def accounts_behind(self, name: str) -> list[Account]:
        """Return the accounts on the server of this breaker."""
        return [each for each in self._accounts if self._names.get((each.imap_host, each.imap_port)) == name]

    def _free_name(self, account: Account) -> str:
        taken = set(self._names.values())
        named = f"imap:{account.name}"
        candidates = ("imap", named, *(f"{named}:{number}" for number in range(2, len(taken) + 3)))
        return next(each for each in candidates if each not in taken)

    def _new(self, name: str) -> Breaker:
        return self._registry.add(name, IMAPConnectionError, open_from_start=True)

    def _drop(self, name: str) -> None:
        """Forget the state of a server that nobody is read on any more: an open breaker would show for ever."""
        del self._breakers[name]
        self._registry.remove(name)
        if name == "imap":
            self._breakers[name] = self._new(name)
