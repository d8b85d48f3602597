"""What commands write into the audit log: that something begins, and how it ended."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from email_ingestion.errors import ConfigurationError
from email_ingestion.ops.audit import write_audit


@contextmanager
def audited(log_dir: Path, action: str, details: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Write down that something begins and how it ended; what is added to the yielded record goes into the end.

    Two lines, because a command that is killed in the middle has done something too. Raises ConfigurationError before
    anything is done when the log cannot be written.
    """
    common = {"user": user(), "pid": os.getpid(), "action": action, **details}
    write_audit(log_dir, common | {"result": "started"})
    outcome: dict[str, Any] = {}
    try:
        yield outcome
    except BaseException as error:
        with suppress(ConfigurationError):  # what went wrong first is what the operator must read
            write_audit(log_dir, common | outcome | {"result": "failed", "error_type": type(error).__name__})
        raise
    write_audit(log_dir, common | outcome | {"result": "done"})


def user() -> str:
    """Who gives the command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return f"uid:{os.getuid()}"
