"""What the URL of a database tells without a look into it: which file it is, and whether two processes share it."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def file_of(url: str) -> Path | None:
    """The file of an SQLite database; None for a server's, and where none is named."""
    kind, _, rest = url.partition(":///")
    path = rest.partition("?")[0]
    return Path(path) if kind == "sqlite" and path else None


def ledger_mark(url: str) -> str | None:
    """Something that is equal for processes that use the same database, and tells nothing of it; None for no file yet.

    A file is known by its device and inode on this boot of the machine: containers see it under different paths.
    """
    file = file_of(url)
    if file is None:
        return _hashed(url.partition("://")[2].rpartition("@")[2])  # whoever logs in there
    try:
        status = file.stat()
        machine = BOOT_ID.read_text() if BOOT_ID.exists() else socket.gethostname()
    except OSError:
        return None
    return _hashed(machine, status.st_dev, status.st_ino)


def _hashed(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
