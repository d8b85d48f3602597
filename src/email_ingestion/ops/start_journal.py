"""`starts.jsonl`: when each process of this machine began, with which version, and how it ended; kept for years.

A process that is killed writes no end: that it has none, and does not run, tells it.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from email_ingestion.atomic_files import unreadable
from email_ingestion.errors import ConfigurationError
from email_ingestion.ops.redaction import error_type
from email_ingestion.ops.status_records import Identity

NAME = "starts.jsonl"
MAX_BYTES = 1_000_000  # then the older half is dropped
FAILED, CONFIGURATION = 2, 78
CRASH_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class ProcessStart:
    """One start of a process. Times are Unix seconds; without `ended` it runs, or was killed."""

    process: str
    pid: int
    version: str
    started: float
    ended: float | None = None
    exit_code: int | None = None
    reason: str | None = None  # a signal, what ended it, or the class of an error


@dataclass(slots=True)
class RunningStart:
    """How the process that runs will have ended; filled in before its end."""

    exit_code: int = 0
    reason: str | None = None


@contextmanager
def record_start(log_dir: Path, identity: Identity) -> Iterator[RunningStart]:
    """Write the start of this process, and its end. A disk that is full must not keep a process from running."""
    started = time.time()
    common = {"process": identity.stem, "pid": os.getpid(), "version": identity.version, "started": started}
    _append(log_dir / NAME, common)
    outcome = RunningStart()
    try:
        yield outcome
    except BaseException as error:
        outcome.exit_code = CONFIGURATION if isinstance(error, ConfigurationError) else FAILED
        outcome.reason = error_type(error) if isinstance(error, Exception) else type(error).__name__
        raise
    finally:
        end = {"ended": time.time(), "exit_code": outcome.exit_code, "reason": outcome.reason}
        _append(log_dir / NAME, common | end)


def read_starts(log_dir: Path) -> list[ProcessStart]:
    """Return all starts that are known, oldest first; lines that are none of ours are left out.

    Raises OperationFailed when they cannot be read.
    """
    found: dict[tuple[str, int, float], ProcessStart] = {}
    try:
        lines = (log_dir / NAME).read_text(errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise unreadable(log_dir / NAME, error) from error
    for line in lines:
        with suppress(ValueError, TypeError, KeyError):
            start = ProcessStart(**json.loads(line))
            found[start.process, start.pid, float(start.started)] = start
    return sorted(found.values(), key=lambda each: each.started)


def recent_crashes(log_dir: Path, now: float) -> Counter[str]:
    """Return how often each process ended by itself within CRASH_SECONDS, and was started again since.

    Raises OperationFailed when the starts cannot be read.
    """
    starts = read_starts(log_dir)
    newest = {each.process: each for each in starts}
    return Counter(
        each.process
        for each in starts
        if 0 <= now - each.started < CRASH_SECONDS and each.exit_code != 0
        if each.ended is not None or newest[each.process] is not each
    )


def utc(seconds: float) -> str:
    """Return a time as people read it."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def _append(path: Path, record: dict[str, Any]) -> None:
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > MAX_BYTES:
            lines = path.read_bytes().splitlines(keepends=True)
            draft = path.with_suffix(f".{os.getpid()}.tmp")
            draft.write_bytes(b"".join(lines[len(lines) // 2 :]))
            draft.replace(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        try:
            os.write(descriptor, json.dumps(record).encode() + b"\n")  # whole: two processes may begin at once
        finally:
            os.close(descriptor)
