"""Starts a process that outlives us, waits until it is up, and ends it; knows processes, not what they do."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from email_ingestion.errors import ConfigurationError, EmailIngestionError, OperationFailed

STEP_SECONDS = 0.05
KILL_SECONDS = 5.0
BAD_CONFIGURATION = 78  # EX_CONFIG of sysexits.h


def spawn(
    command: Sequence[str],
    log: Path,
    up: Callable[[], bool],
    *,
    seconds: float,
    environment: dict[str, str] | None = None,
) -> None:
    """Start `command` detached, its output appended to `log`, and return once `up` says so.

    Raises ConfigurationError or OperationFailed with the last thing it said when it ends or is not up in time.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("ab")
    except OSError as error:
        raise ConfigurationError(f"cannot write {log}: {error.strerror}; set LOG_DIR") from error
    with file:
        before = file.tell()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            env=environment,
            creationflags=_DETACHED,
        )
    deadline = time.monotonic() + seconds
    while not up():
        code = child.poll()
        if code is not None:
            raise _failure(code)(f"{Path(command[1]).name} did not start: {_said(log, before)}")
        if time.monotonic() > deadline:
            end([psutil.Process(child.pid)], 1.0)
            raise OperationFailed(f"{Path(command[1]).name} was not up within {seconds:.0f} s: {_said(log, before)}")
        time.sleep(STEP_SECONDS)


_DETACHED: int = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0) if sys.platform == "win32" else 0


def end(processes: Iterable[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Ask processes to end and wait; returns those that had to be killed."""
    asked = list(processes)
    for process in asked:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    left = _outlasting(asked, seconds)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _outlasting(left, KILL_SECONDS)
    return left


def lives(process: psutil.Process) -> bool:
    """Whether it still runs; one that only waits for its parent to notice its end does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _outlasting(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait for their end; returns those that live on."""
    deadline = time.monotonic() + seconds
    while left := [process for process in processes if lives(process)]:
        if time.monotonic() > deadline:
            break
        time.sleep(STEP_SECONDS)
    return left


def _failure(code: int) -> type[EmailIngestionError]:
    return ConfigurationError if code == BAD_CONFIGURATION else OperationFailed


def _said(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read()[-4000:].decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else f"see {log}"
