"""Keeps one account watched: runs its watcher in a thread, and puts another in its place when it gets nothing done.

Whatever a watcher hangs in (a server that sends a byte now and then keeps every time-out happy), the mail goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from email_ingestion.events import LeaseChanged, LoopTick, Observe, WatcherRebuilt, Watching
from email_ingestion.producer.watch import Watcher

LOOK_SECONDS = 1.0


class Lease(Protocol):
    """Whether an account is ours to read; see `tenure`."""

    def holds(self, account: str, within: float = 0.0) -> bool:
        """Whether it is, or becomes so `within` seconds."""

    def holder(self, account: str) -> str | None:
        """Which other process has it."""

    def doubt(self, account: str) -> None:
        """It is not, whatever is believed."""


class Keeper:
    """`make` builds a watcher; one that achieves nothing for `patience` seconds is given up."""

    def __init__(
        self, account: str, make: Callable[[], Watcher], patience: float, lease: Lease, observe: Observe
    ) -> None:
        self._account = account
        self._make = make
        self._lease = lease
        self._holder: str | None = ""  # who was said to read it last
        self._patience = patience
        self._observe = observe
        self._lock = threading.Lock()
        self._stopped = False
        self.watcher = make()

    def run(self) -> None:
        """Watch while the account is ours, until `stop`."""
        while not self._stopped:
            if self._lease.holds(self._account, LOOK_SECONDS):
                self._tell(None)
                self._watch()
                continue
            self._observe(LoopTick(f"watch:{self._account}"))
            holder = self._lease.holder(self._account)
            if holder:
                self._tell(holder)

    def _tell(self, holder: str | None) -> None:
        """Say who reads the account now, None for this process, where that is news."""
        if holder == self._holder:
            return
        if holder:
            self._observe(Watching(self._account, "standby"))
        self._observe(LeaseChanged(self._account, holder, lost=bool(holder) and self._holder is None))
        self._holder = holder

    def _watch(self) -> None:
        """Watch until `stop`, or until somebody else has the account."""
        thread = self._started()
        while thread and thread.is_alive():
            thread.join(min(LOOK_SECONDS, self._patience / 4))
            if not self._lease.holds(self._account):
                self._leave(thread)
                return
            idle = self.watcher.idle_for()
            if thread.is_alive() and idle > self._patience:
                thread = self._rebuild(idle) or thread
        if not self._stopped:  # it was refused: what is believed of the lease is out of date
            self._lease.doubt(self._account)

    def _leave(self, thread: threading.Thread) -> None:
        """What it still tries to write is refused, so it is not waited for longer than is polite."""
        self.watcher.stop()
        thread.join(LOOK_SECONDS)
        self.watcher.abandon()

    def _started(self) -> threading.Thread | None:
        with self._lock:
            if self._stopped:
                return None
            self.watcher = self._make()
            return self._start(self.watcher)

    def stop(self) -> None:
        """End soon; from any thread."""
        with self._lock:
            self._stopped = True
            self.watcher.stop()

    def _rebuild(self, idle: float) -> threading.Thread | None:
        with self._lock:
            if self._stopped:
                return None
            self.watcher.abandon()
            self._observe(WatcherRebuilt(self._account, idle))
            self.watcher = self._make()
            return self._start(self.watcher)

    def _start(self, watcher: Watcher) -> threading.Thread:
        thread = threading.Thread(target=watcher.run, name=f"watch-{self._account}", daemon=True)
        thread.start()
        return thread
