"""Supervises one account's watcher: runs it in a thread while this process has the lease, and replaces one that hangs.

A server that sends one byte now and then satisfies every time-out; the supervisor sees that nothing is achieved.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from email_ingestion.background import start_now
from email_ingestion.errors import IMAPConnectionError
from email_ingestion.events import (
    AnswerSlow,
    LeaseChanged,
    LoopFailed,
    LoopTick,
    Observe,
    Probed,
    WatcherRebuilt,
    Watching,
)
from email_ingestion.producer.lease_renewer import LeaseRenewer
from email_ingestion.producer.watch import Watcher

CHECK_SECONDS = 1.0
# An answer that comes for so long with fewer bytes a second is told: no time-out ends it, and mail stands still.
SLOW_SECONDS = 20.0
SLOW_RATE = 10_000
# A watcher may be silent for this part of the time since a synchronization succeeded last, if that is more than it may
# be otherwise: on a slow server or machine a login takes longer than three short polls, and each would be cut off.
PATIENCE_SHARE, LONGEST_PATIENCE = 1 / 8, 30.0


class WatcherSupervisor:
    """Runs the watchers that `make_watcher` builds; one without progress for `stall_seconds` is abandoned."""

    def __init__(
        self,
        account: str,
        make_watcher: Callable[[], Watcher],
        stall_seconds: float,
        leases: LeaseRenewer,
        observe: Observe,
    ) -> None:
        self._account = account
        self._make_watcher = make_watcher
        self._stall_seconds = stall_seconds
        self._leases = leases
        self._observe = observe
        self._reported_owner: str | None = ""  # None: this process
        self._lock = threading.Lock()
        self._stopped = False
        self.watcher = make_watcher()
        self._answer: tuple[int, int, float] | None = None  # its number, the bytes that had come, and when that was
        self._answer_is_slow = False
        self._synced_at = time.monotonic()  # when a synchronization succeeded last, or now

    def run(self) -> None:
        """Watch the account whenever this process has its lease, until `stop`."""
        while not self._stopped:
            try:
                self._run_once()
            except Exception as error:  # noqa: BLE001 - an account must not be forgotten in silence
                self._observe(LoopFailed(f"watch:{self._account}", error, CHECK_SECONDS))
                time.sleep(CHECK_SECONDS)

    def start_failed(self, error: Exception) -> None:
        """Announce that there is no thread yet in which to watch."""
        self._observe(LoopFailed(f"watch:{self._account}", error, CHECK_SECONDS))

    def stop(self) -> None:
        """CursorEnd soon; from any thread."""
        with self._lock:
            self._stopped = True
            self.watcher.stop()

    def _run_once(self) -> None:
        if self._leases.owns(self._account, CHECK_SECONDS):
            self._report_owner(None)
            self._watch()
            return
        self._observe(LoopTick(f"watch:{self._account}"))
        owner = self._leases.owner(self._account)
        if owner:
            self._report_owner(owner)

    def _watch(self) -> None:
        """Watch until `stop`, or until another process has the lease."""
        self._synced_at = time.monotonic()
        thread = self._start_watcher()
        while thread and thread.is_alive():
            thread.join(min(CHECK_SECONDS, self._stall_seconds / 4))
            if not self._leases.owns(self._account):
                self._stop_watcher(thread)
                return
            self._report_slow_answer()
            idle = self.watcher.idle_for()
            if thread.is_alive() and idle > self._patience():
                thread = self._replace_watcher(idle) or thread
        if (
            not self._stopped and not self.watcher.is_outdated
        ):  # Redis refused its write: what is believed of the lease is out of date
            self._leases.invalidate(self._account)

    def _patience(self) -> float:
        """Return for how many seconds the watcher may get nothing done."""
        self._synced_at = max(self._synced_at, self.watcher.synced_at)
        since = time.monotonic() - self._synced_at
        return max(self._stall_seconds, min(LONGEST_PATIENCE, since * PATIENCE_SHARE))

    def _report_slow_answer(self) -> None:
        """Announce that one answer has been coming for long at a trickle, and that it is there or given up."""
        progress, now = self.watcher.answer_progress(), time.monotonic()
        same = progress and self._answer and progress[0] == self._answer[0]
        seconds = now - self._answer[2] if self._answer and same else 0.0
        received = progress[1] - self._answer[1] if progress and self._answer else 0
        if not same or received > SLOW_RATE * max(seconds, SLOW_SECONDS):
            self._answer = (*progress, now) if progress else None
            if self._answer_is_slow:
                self._answer_is_slow = False
                self._observe(AnswerSlow(self._account, 0.0))
        elif not self._answer_is_slow and seconds >= SLOW_SECONDS:
            self._answer_is_slow = True
            self._observe(AnswerSlow(self._account, seconds))
            self._report_unwell(
                f"an answer of the IMAP server has been coming for {seconds:.0f} s at a trickle", seconds
            )

    def _report_unwell(self, what: str, seconds: float) -> None:
        """Announce that the mail server is of no use, until the next synchronization succeeds."""
        error = IMAPConnectionError(what)
        self._observe(Probed("imap", ok=False, seconds=seconds, error=error, account=self._account))

    def _start_watcher(self) -> threading.Thread | None:
        with self._lock:
            return None if self._stopped else self._start_thread()

    def _replace_watcher(self, idle: float) -> threading.Thread | None:
        with self._lock:
            if self._stopped:
                return None
            asked_server = self.watcher.asks_server()
            self.watcher.abandon()
            self._observe(WatcherRebuilt(self._account, idle, asked_server))
            if asked_server:
                self._report_unwell(f"nothing that helps came from the IMAP server for {idle:.0f} s", idle)
            return self._start_thread()

    def _start_thread(self) -> threading.Thread:
        self.watcher = self._make_watcher()
        thread = threading.Thread(target=self.watcher.run, name=f"watch-{self._account}", daemon=True)
        start_now(thread)
        return thread

    def _stop_watcher(self, thread: threading.Thread) -> None:
        """Wait only shortly: whatever the watcher still tries to write is refused for want of the lease."""
        self.watcher.stop()
        thread.join(CHECK_SECONDS)
        self.watcher.abandon()

    def _report_owner(self, owner: str | None) -> None:
        """Announce the process that reads the account now, None for this one, if that changed."""
        if owner == self._reported_owner:
            return
        if owner:
            self._observe(Watching(self._account, "standby"))
        self._observe(LeaseChanged(self._account, owner, lost=bool(owner) and self._reported_owner is None))
        self._reported_owner = owner
