"""Dead letters: what is written on one. Buried by the worker, read and replayed by operators."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from typing import Literal

from email_ingestion import __version__

Reason = Literal["max_retries", "permanent", "poison", "operator"]

ERROR_CHARACTERS = 1_000
TRACE_CHARACTERS = 8_000


def obituary(reason: Reason, attempts: int, error: Exception | None, trace: str, instance: str) -> dict[str, str]:
    """The `dead_…` fields that go beside the entry's own."""
    cause = error.__cause__ or error if error else None
    return {
        "dead_reason": reason,
        "dead_error_type": type(cause).__name__ if cause else "",
        "dead_error": str(error or "")[:ERROR_CHARACTERS],
        "dead_traceback": trace[-TRACE_CHARACTERS:],
        "dead_attempts": str(attempts),
        "dead_at": datetime.now(UTC).isoformat(),
        "dead_fingerprint": fingerprint(reason, cause),
        "dead_instance": instance,
        "dead_version": __version__,
    }


def fingerprint(reason: Reason, error: BaseException | None) -> str:
    """The same for deaths of one kind: reason, the error's class, and its text without numbers and quotations."""
    words = re.sub(r"0x[0-9a-f]+|\d+|'[^']*'|\"[^\"]*\"", "#", str(error or ""), flags=re.IGNORECASE)
    return hashlib.sha256(f"{reason}|{type(error).__name__}|{words}".encode()).hexdigest()[:12]
