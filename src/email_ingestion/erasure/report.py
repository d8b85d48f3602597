"""The report of an erasure: what was removed where, and what stays elsewhere and until when; signed.

The signature is an HMAC with a key of the installation, `ERASURE_DIR/report.key`; the SHA-256 of the report is in the
audit log, whose lines are chained: who has the key and forges a report must forge the log too. No address and no
identity is in it: hashes, as in the tombstones, whose lines name the run.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from email_ingestion import __version__
from email_ingestion.atomic_files import write_private
from email_ingestion.errors import OperationFailed

FORMAT = "email-ingestion erasure report"
KEY = "report.key"
REPORTS = "reports"
SIGNATURE = "hmac_sha256"


@dataclass(frozen=True, slots=True)
class Remainder:
    """What of erased mail is still somewhere, and until when."""

    place: str
    until: str


def write_report(directory: Path, run: str, facts: Mapping[str, Any], stays: Sequence[Remainder]) -> tuple[Path, str]:
    """Write the report of a run; return its file and the SHA-256 of that. Raises ConfigurationError."""
    record: dict[str, Any] = {
        "format": FORMAT,
        "version": 1,
        "made_by": __version__,
        "run": run,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        **facts,
        "stays": [{"place": each.place, "until": each.until} for each in stays],
    }
    record[SIGNATURE] = _signature(record, _key(directory))
    content = json.dumps(record, indent=2) + "\n"
    path = directory / REPORTS / f"{run}.json"
    write_private(path, content)
    return path, hashlib.sha256(content.encode()).hexdigest()


def verify_report(directory: Path, path: Path) -> str | None:
    """Return why a report is not one that this installation wrote and nobody changed; None when it is.

    Raises OperationFailed when it, or the key, cannot be read.
    """
    try:
        record = json.loads(path.read_bytes())
        key = bytes.fromhex((directory / KEY).read_text())
    except OSError as error:
        raise OperationFailed(f"cannot read {error.filename}: {error.strerror}") from error
    except (ValueError, RecursionError):
        record, key = None, b""
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        return "it is no report of an erasure"
    signature = str(record.pop(SIGNATURE, ""))
    return None if hmac.compare_digest(signature, _signature(record, key)) else "it was changed, or is another's"


def _signature(record: Mapping[str, Any], key: bytes) -> str:
    content = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
    return hmac.new(key, content, hashlib.sha256).hexdigest()


def _key(directory: Path) -> bytes:
    """Return the key of the installation, which is made for the first report."""
    path = directory / KEY
    try:
        return bytes.fromhex(path.read_text())
    except FileNotFoundError:
        write_private(path, secrets.token_hex(32))
        return bytes.fromhex(path.read_text())
    except (OSError, ValueError) as error:
        raise OperationFailed(f"cannot read the key {path}: {error}; move it away, and a new one is made") from error
