"""Keeps one account watched: runs its watcher in a thread, and puts another in its place when it gets nothing done.

Whatever a watcher hangs in (a server that sends a byte now and then keeps every time-out happy), the mail goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from email_ingestion.events import Observe, WatcherRebuilt
from email_ingestion.producer.watch import Watcher

LOOK_SECONDS = 1.0


class Keeper:
    """`make` builds a watcher; one that achieves nothing for `patience` seconds is given up."""

    def __init__(self, account: str, make: Callable[[], Watcher], patience: float, observe: Observe) -> None:
        self._account = account
        self._make = make
        self._patience = patience
        self._observe = observe
        self._lock = threading.Lock()
        self._stopped = False
        self.watcher = make()

    def run(self) -> None:
        """Watch until `stop`."""
        thread = self._start(self.watcher)
        while thread.is_alive():
            thread.join(min(LOOK_SECONDS, self._patience / 4))
            idle = self.watcher.idle_for()
            if thread.is_alive() and idle > self._patience:
                thread = self._rebuild(idle) or thread

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
