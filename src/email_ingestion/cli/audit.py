"""`audit.log`: who did what to the mail, one JSON object a line; what operators change goes in, nothing else."""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from email_ingestion.errors import ConfigurationError


@contextmanager
def audited(log_dir: Path, action: str, details: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Write down that something begins and how it ended; what is added to the yielded record goes into the end.

    Two lines, because a command that is killed in the middle has done something too. Raises ConfigurationError before
    anything is done when the log cannot be written.
    """
    path = log_dir / "audit.log"
    common = {"user": _user(), "pid": os.getpid(), "action": action, **details}
    _append(path, common | {"result": "started"})
    outcome: dict[str, Any] = {}
    try:
        yield outcome
    except BaseException as error:
        with suppress(ConfigurationError):  # what went wrong first is what the operator must read
            _append(path, common | outcome | {"result": "failed", "error_type": type(error).__name__})
        raise
    _append(path, common | outcome | {"result": "done"})


def _append(path: Path, record: dict[str, Any]) -> None:
    line = json.dumps({"timestamp": datetime.now(UTC).isoformat(), **record}) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line.encode())  # one write: lines of two commands never mix
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}; make LOG_DIR writable") from error


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return f"uid:{os.getuid()}"
