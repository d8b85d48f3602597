"""The name of the place this process sits in: one process at a time, so it follows on a dead one."""

from __future__ import annotations

import re
import secrets

from email_ingestion.atomic_files import write_private
from email_ingestion.ops.status_records import Identity
from email_ingestion.settings import Settings


def seat_of(settings: Settings, identity: Identity) -> str:
    """The seat of a process that holds the lock of its PID file.

    It is kept beside that file, and not made of host names alone: two containers may have the same.
    """
    path = settings.pid_dir / f"{identity.stem}.seat"
    try:
        name = path.read_text().strip()
    except OSError:
        name = ""
    if not re.fullmatch(r"[0-9a-f]{16}", name):
        name = secrets.token_hex(8)
        write_private(path, f"{name}\n")
    return f"{identity.instance}/{name}"
