"""Writes `audit.log`: one JSON object a line for every change an operator makes, and nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from email_ingestion.errors import ConfigurationError


def write_audit(log_dir: Path, record: Mapping[str, Any]) -> None:
    """Append a record and fsync it. Raises ConfigurationError when the file cannot be written."""
    path = log_dir / "audit.log"
    line = json.dumps({"timestamp": datetime.now(UTC).isoformat(), **record}) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line.encode())  # one write: lines of two processes never mix
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}; make LOG_DIR writable") from error
