"""Turns what a process writes past its log into records, so that every line of a log file is JSON.

`<stem>.crash` has the stacks of crashes in C code, written by faulthandler. `<stem>.stderr` has what libraries and
child processes write to stdout and stderr where these are the log file, as after `worker.py >> logs/worker.log 2>&1`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from email_ingestion.atomic_files import unwritable
from email_ingestion.background import PeriodicThread
from email_ingestion.daemon import write_crashes_to
from email_ingestion.ops.logs import logger

POLL_SECONDS = 2.0
MAX_CHARACTERS = 20_000  # of one record; the end is kept
STDOUT, STDERR = 1, 2


def redirect_output(log_dir: Path, stem: str) -> str:
    """Let stdout and stderr write to `<stem>.stderr` where they are the log file itself, or a file that was removed.

    Children inherit that. Returns the text of a file that was removed: nobody else can read it any more.
    """
    removed: list[str] = []
    with suppress(OSError, ValueError):
        log = (log_dir / f"{stem}.log").stat()
        if not stat.S_ISREG(log.st_mode):
            return ""  # in a container the log is stderr
        for descriptor in (STDOUT, STDERR):
            with suppress(OSError):
                output = os.fstat(descriptor)
                is_removed = stat.S_ISREG(output.st_mode) and not output.st_nlink
                if os.path.samestat(output, log) or is_removed:
                    file = os.open(log_dir / f"{stem}.stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                    former = os.dup(descriptor)
                    os.dup2(file, descriptor)
                    os.close(file)
                    if is_removed and (text := _take(Path(f"/proc/self/fd/{former}"))):
                        removed.append(text)
                    os.close(former)
    return "\n".join(removed)


class RawOutput:
    """The two files of one running process; only the holder of the PID file may have it.

    What an earlier life left in them is logged when the object is made, what comes later within seconds.
    """

    def __init__(self, log_dir: Path, stem: str, on_error: Callable[[Exception], None]) -> None:
        self._log_dir, self._stem = log_dir, stem
        self._output = log_dir / f"{stem}.stderr"
        self.crash_file = _open_crash_file(log_dir, stem)  # None where there is no log file
        if self.crash_file and (stacks := _take(Path(self.crash_file.name))):
            logger("process").critical("process_crashed", earlier_life=True, stacks=stacks)
        self._thread = PeriodicThread("raw-output", POLL_SECONDS, self.log_output, immediate=True, on_error=on_error)

    def start(self) -> None:
        """Look every few seconds for output to log."""
        self._thread.start()

    def close(self) -> None:
        """Log the rest and stop."""
        self._thread.close(POLL_SECONDS)
        self.log_output()

    def reopen(self) -> None:
        """Open the files again, as far as somebody removed them while they were open, and log what they held."""
        if self.crash_file and not Path(self.crash_file.name).exists():
            file = _open_crash_file(self._log_dir, self._stem)
            if file:
                self.crash_file = file
                write_crashes_to(file)
        self._log(redirect_output(self._log_dir, self._stem))

    def log_output(self) -> None:
        """Log what was written to stdout and stderr since the last call.

        Raises ConfigurationError when LOG_DIR may not be entered any more.
        """
        try:
            self.reopen()
        except PermissionError as error:
            raise unwritable(self._log_dir / f"{self._stem}.log", error) from error
        self._log(_take(self._output))

    def _log(self, text: str) -> None:
        if text:
            logger("process").warning("stderr_output", output=text)


def _open_crash_file(log_dir: Path, stem: str) -> IO[bytes] | None:
    try:
        return (log_dir / f"{stem}.crash").open("ab", buffering=0) if (log_dir / f"{stem}.log").is_file() else None
    except OSError:
        return None


def _take(path: Path) -> str:
    """Return the text in a file that others append to, and empty it."""
    try:
        if not path.stat().st_size:
            return ""
        text = path.read_text("utf-8", "replace")
        os.truncate(path, 0)
    except OSError:
        return ""
    return text.strip()[-MAX_CHARACTERS:]
