"""A thread that looks for the newest backup: BACKUP_DIR may hang on a network, and no loop may wait for it."""

from __future__ import annotations

import threading
from pathlib import Path

from email_ingestion.backup.archive import newest_backup_time
from email_ingestion.events import BackupFound, LoopFailed, Observe

EVERY_SECONDS = 60.0


class BackupWatch:
    """`start` it, `close` it."""

    def __init__(self, directory: Path, observe: Observe) -> None:
        self._directory = directory
        self._observe = observe
        self._closed = threading.Event()

    def start(self) -> None:
        """Begin to look."""
        threading.Thread(target=self._watch, name="backups", daemon=True).start()

    def close(self) -> None:
        """Look no more; a look that hangs is not waited for."""
        self._closed.set()

    def _watch(self) -> None:
        while True:
            try:
                if made := newest_backup_time(self._directory):
                    self._observe(BackupFound(made.timestamp()))
            except OSError as error:
                self._observe(LoopFailed("backups", error))
            if self._closed.wait(EVERY_SECONDS):
                return
