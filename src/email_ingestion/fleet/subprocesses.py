"""Detached processes: start one and wait until it is up, terminate it, and find free ports for it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from email_ingestion.atomic_files import unwritable
from email_ingestion.errors import ConfigurationError, EmailIngestionError, OperationFailed
from email_ingestion.settings import environment

POLL_SECONDS = 0.05
KILL_SECONDS = 5.0
BAD_CONFIGURATION = 78  # EX_CONFIG of sysexits.h


class DetachedProcess:
    """A process that goes on when its starter ends; its output is appended to `log`."""

    def __init__(self, command: Sequence[str], log: Path, variables: dict[str, str] | None = None) -> None:
        """Start it. Raises ConfigurationError when the log cannot be written."""
        self._log = log
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            file = log.open("ab")
        except OSError as error:
            raise unwritable(log, error, "set LOG_DIR") from error
        with file:
            self._start = file.tell()
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                env=environment() if variables is None else variables,
                creationflags=_DETACHED,
            )

    def exit_code(self) -> int | None:
        """Return its exit code; None while it runs."""
        return self._child.poll()

    def last_line(self) -> str:
        """Return what it said last."""
        return _last_line(self._log, self._start)

    def end(self, seconds: float) -> None:
        """Terminate it, and kill it when that takes longer than `seconds`."""
        with suppress(psutil.NoSuchProcess):
            terminate([psutil.Process(self._child.pid)], seconds)


def spawn(
    command: Sequence[str],
    log: Path,
    is_up: Callable[[], bool],
    *,
    seconds: float,
) -> None:
    """Start `command` detached, its output appended to `log`, and return once `is_up` returns True.

    Raises ConfigurationError or OperationFailed with the last line of its output when it ends or is not up in time.
    """
    process = DetachedProcess(command, log)
    deadline = time.monotonic() + seconds
    while not is_up():
        code = process.exit_code()
        if code is not None:
            raise _failure(code)(f"{Path(command[1]).name} did not start: {process.last_line()}")
        if time.monotonic() > deadline:
            process.end(1.0)
            raise OperationFailed(f"{Path(command[1]).name} was not up within {seconds:.0f} s: {process.last_line()}")
        time.sleep(POLL_SECONDS)


_DETACHED: int = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0) if sys.platform == "win32" else 0


def terminate(processes: Iterable[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Terminate processes and wait; return the ones that had to be killed."""
    terminated = list(processes)
    for process in terminated:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    left = _wait(terminated, seconds)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _wait(left, KILL_SECONDS)
    return left


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process still runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wait(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait for their end; return the ones that still live."""
    deadline = time.monotonic() + seconds
    while left := [process for process in processes if is_alive(process)]:
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    return left


def _failure(code: int) -> type[EmailIngestionError]:
    return ConfigurationError if code == BAD_CONFIGURATION else OperationFailed


def _last_line(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read()[-4000:].decode("utf-8", "replace").strip().splitlines()
    return _reason(lines[-1]) if lines else f"see {log}"


def _reason(line: str) -> str:
    """Return what the last line of a log says: the reason in a record, or the line itself."""
    try:
        record = json.loads(line)
        return str(record.get("reason") or record.get("message") or record["event"])
    except (ValueError, AttributeError, KeyError):
        return line


def start_on_free_ports(wanted: Sequence[int], start: Callable[[Sequence[int]], None]) -> Sequence[int]:
    """Call `start` with free ports, again if another process took one meanwhile; return the ports.

    `wanted` are the preferred ports; 0 means any. Raises the error of `start` when the ports are not the reason.
    """
    while True:
        ports = [free_port(port) for port in wanted]
        try:
            start(ports)
        except (ConfigurationError, OperationFailed):
            if ports == [free_port(port) for port in ports]:
                raise
        else:
            return ports


def free_port(wanted: int) -> int:
    """Return `wanted` if nobody listens there, else a port the system chooses."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OperationFailed("this machine has no free port")
