"""Identify a database by its URL without opening it: its file, and a fingerprint that all its users share."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# A container with a systemd of its own has a boot id of its own as well, but only in the /proc that it began with: a
# service with ProtectProc= gets a new one, and reads the host's there. The machine id is one file for all of them.
OWN_SYSTEMD = Path("/run/systemd/container")
MACHINE_ID = Path("/etc/machine-id")


def sqlite_path(url: str) -> Path | None:
    """Return the file of an SQLite database; None for another database and for a URL without a file."""
    kind, _, rest = url.partition(":///")
    path = rest.partition("?")[0]
    return Path(path) if kind == "sqlite" and path else None


def ledger_fingerprint(url: str) -> str | None:
    """Return 12 hex digits that are equal for processes that use the same database; None while it has no file.

    A file is identified by its machine, device and inode: containers see it under different paths.
    """
    file = sqlite_path(url)
    if file is None:
        return _digest(url.partition("://")[2].rpartition("@")[2])  # users of one server may log in as different roles
    try:
        status = file.stat()
        machine = _machine()
    except OSError:
        return None
    return _digest(machine, status.st_dev, status.st_ino)


def _machine() -> str:
    path = MACHINE_ID if OWN_SYSTEMD.exists() and MACHINE_ID.exists() else BOOT_ID
    return path.read_text() if path.exists() else socket.gethostname()


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
