"""Ports for the servers that tests start: no other test of this machine gets them, and no connection takes them."""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import tempfile
import time
from functools import cache
from pathlib import Path

# Below those that systems give to whoever connects: a server that is killed finds its port free when it starts again.
LOWEST, HIGHEST = 20_000, 32_000
_given: set[int] = set()


def free_port() -> int:
    return free_row(1)


def free_row(count: int) -> int:
    """The first of so many free ports in a row; they are this process's until it ends."""
    while True:
        first = LOWEST + secrets.randbelow(HIGHEST - LOWEST - count)
        if all(_claim(port) for port in range(first, first + count)):
            return first


def _claim(port: int) -> bool:
    """Whether nobody has it: a server that is yet to start shows by the lock alone."""
    if port in _given:
        return False
    try:
        fcntl.lockf(_claims(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
    except OSError:
        return False
    _given.add(port)
    return True


@cache
def _claims() -> int:
    """A file with a byte to lock for each port; the system unlocks them when the process ends."""
    path = Path(tempfile.gettempdir()) / f"email-ingestion-ports-{os.getuid()}.lock"
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def wait_for_port(port: int, alive, seconds: float = 20.0) -> None:
    """Return when something listens; `alive()` says whether waiting still makes sense."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert alive(), f"the server for port {port} ended"
            assert time.monotonic() < deadline, f"nothing listens on port {port} after {seconds} s"
            time.sleep(0.02)
        else:
            return
