"""Erases what is older than it is kept: each night in the producer, and when an operator asks for it.

When it ran last is the time of a file beside the tombstones, so that a producer that starts each day runs it all the
same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from email_ingestion.app.account_list import configured_accounts
from email_ingestion.atomic_files import write_private
from email_ingestion.background import PeriodicThread
from email_ingestion.erasure.tombstones import TombstoneFile
from email_ingestion.events import ErasuresLookedAt, LoopFailed, Observe, RetentionApplied
from email_ingestion.ops.audit_log import write_audit
from email_ingestion.routing import Router
from email_ingestion.settings import Settings
from email_ingestion.stream import RedisLink

if TYPE_CHECKING:
    from email_ingestion.erasure.retention import RetentionSelector
    from email_ingestion.ledger.store import Ledger

LOOP = "retention"
INTERVAL_SECONDS = 86_400.0
LOOK_SECONDS = 300.0  # between two looks whether it is due; the first comes when a process has better things done
RAN = "retention-ran"


def retention_selector(settings: Settings, ledger: Ledger) -> RetentionSelector | None:
    """Return what is too old now; None where neither a setting nor a route says for how long mail is kept."""
    from email_ingestion.erasure.retention import RetentionSelector  # noqa: PLC0415 - a producer needs it at night

    accounts = configured_accounts(settings, ledger)
    by_account = {each.name: each.retention_days for each in accounts if each.retention_days}
    router = Router(settings.routes, settings.sinks[1:])
    routes = ledger.erasure.route_days()
    if not by_account and not routes and not router.sets_retention:
        return None
    return RetentionSelector(datetime.now(UTC), by_account, routes, router)


class NightlyRetention:
    """A thread of the producer: `start` and `close` it."""

    def __init__(self, settings: Settings, link: RedisLink, ledger: Callable[[], Ledger], observe: Observe) -> None:
        self._settings = settings
        self._link = link
        self._ledger = ledger
        self._observe = observe
        self._ran = settings.erasure_dir / RAN
        self._thread = PeriodicThread(
            LOOP,
            LOOK_SECONDS,
            self._run_if_due,
            immediate=False,
            on_error=lambda error: observe(LoopFailed(LOOP, error)),
        )

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread soon; what is not erased yet is next time."""
        self._thread.close()

    def _run_if_due(self) -> None:
        self._observe(ErasuresLookedAt(len(TombstoneFile(self._settings.erasure_dir).unfinished())))
        with suppress(FileNotFoundError):
            if 0 <= time.time() - self._ran.stat().st_mtime < INTERVAL_SECONDS:
                return
        if self.run():
            write_private(self._ran, datetime.now(UTC).isoformat())

    def run(self) -> bool:
        """Erase what is too old, and contents that an erasure has left; return whether it came to its end."""
        from email_ingestion.app.erasures import WEBHOOK, new_run, open_eraser, report_erasure  # noqa: PLC0415 - with it come the sinks

        ledger = self._ledger()
        selector = retention_selector(self._settings, ledger)
        owed = ledger.erasure.pending_contents() or ledger.erasure.pending_notices(WEBHOOK, 1)
        if selector is None and not owed:
            return True
        started, run = time.monotonic(), new_run()
        with open_eraser(self._settings, self._link, ledger, run) as eraser:
            for _ in eraser.erase(selector) if selector else eraser.clean_up():
                if self._thread.is_closed(0.0):
                    return False
            found = eraser.summary
            written = report_erasure(self._settings, eraser, selector, scrubbed=False) if found.matched else {}
        left = len(found.unreadable) + len(found.failed_sinks) + len(found.busy_sinks) + len(found.untold)
        if found.matched or left:
            facts = {"matched": found.matched, "held": found.held, "removed": dict(+found.removed)}
            details = selector.describe() if selector else {}
            who = {"user": "producer", "action": "retention", "run": run}
            write_audit(self._settings.log_dir, {**who, **details, **facts, **written, "result": "done"})
        self._observe(RetentionApplied(found.matched - found.held, found.held, left, time.monotonic() - started))
        return True
