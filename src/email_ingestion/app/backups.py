"""A thread that looks for the newest backup: BACKUP_DIR may hang on a network, and no loop may wait for it."""

from __future__ import annotations

from pathlib import Path

from email_ingestion.background import PeriodicThread
from email_ingestion.backup.archive import newest_backup_time
from email_ingestion.events import BackupFound, LoopFailed, Observe

EVERY_SECONDS = 60.0


class BackupWatch:
    """`start` it, `close` it."""

    def __init__(self, directory: Path, observe: Observe) -> None:
        self._directory = directory
        self._observe = observe
        self._thread = PeriodicThread(
            "backups",
            EVERY_SECONDS,
            self._check,
            immediate=True,
            on_error=lambda error: observe(LoopFailed("backups", error)),
        )

    def start(self) -> None:
        """Begin to check."""
        self._thread.start()

    def close(self) -> None:
        """Check no more; a check that hangs is not waited for."""
        self._thread.close()

    def _check(self) -> None:
        if made := newest_backup_time(self._directory):
            self._observe(BackupFound(made.timestamp()))
