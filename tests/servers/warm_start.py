"""Processes of ours without the second of CPU that a start spends on imports: half the time of the suite went there.

For each kind of process a Python imports, once in a test run, what such processes import; each start is a fork of it
that goes on with the same file as `python producer.py`. It is a child of the tests like any other, with its own PID,
folder, environment and log, and shows its own command line. What only a real start has (another Python, settings of
the interpreter or of the C library, an installation, the memory of the process) is for `Place(fresh=True)`; with
WARM_START=no every start is one, as it is outside of tests, where `bench` measures.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from email_ingestion.settings import Settings

FORKER = Path(__file__).with_name("warm_process.py")
# What a process can be told after its imports. With anything else (LD_PRELOAD, TZ) it has a Python of its own.
SETTINGS = {name.upper() + suffix for name in Settings.model_fields for suffix in ("", "_FILE")}
OTHER_CODE = ("PYTHON", "COVERAGE")  # variables that begin so change what is imported
MOST = 6  # waiting Pythons: of 70 MB each, which what they fork shares
KINDS = {"producer.py": "processes", "worker.py": "processes", "email_ingestion": "commands"}
PROJECT = Path(__file__).resolve().parents[2]
ROOM = 16 * 1024  # bytes for the command line and for the environment that a fork shows
SET_CHILD_SUBREAPER = 36  # prctl(2): orphans become children of this process

_forkers: dict[tuple[Any, ...], _Forker] = {}
_lock = threading.Lock()


class WarmProcess(subprocess.Popen[bytes]):
    """A child of this process that another one forked."""

    def __init__(self, pid: int, words: list[str], pipes: list[IO[str]]) -> None:
        self.args, self.pid, self.returncode = words, pid, None
        self.stdin = None
        self.stdout, self.stderr = pipes or (None, None)
        self.text_mode = True
        self._input, self._communication_started = None, False
        self._waitpid_lock = threading.Lock()
        self._child_created = True


def may_be_warm() -> bool:
    return "PYTEST_CURRENT_TEST" in os.environ and os.environ.get("WARM_START") != "no"


def start_warm(words: list[str], folder: Path, environment: dict[str, str], log: IO | None) -> WarmProcess | None:
    """Start `python WORDS` with its output in `log`, or in pipes; None where it is not the same as from a shell."""
    program = Path(words[0])
    kind = KINDS.get(words[1]) if words[0] == "-m" else KINDS.get(program.name) if program.parent == PROJECT else None
    names = {*environment, *(os.environ.keys() & {"PYTHONPATH", "COVERAGE_PROCESS_START"})}
    if sys.platform != "linux" or not kind or any(name.startswith(OTHER_CODE) for name in names):
        return None
    before = {name: value for name, value in environment.items() if name not in SETTINGS}
    key = (kind, *sorted(before.items()))
    with _lock:
        forker = _forkers.pop(key, None) or _Forker(kind, before)
        _forkers[key] = forker  # the last, for it was used last
        if len(_forkers) > MOST:
            _forkers.pop(next(iter(_forkers))).close()
        return forker.start(words, folder, environment, log)


class _Forker:
    def __init__(self, kind: str, environment: dict[str, str]) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, FORKER, str(theirs.fileno()), kind, "-" * ROOM],
                env=environment | {"ROOM": "-" * ROOM},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        atexit.register(self.close)

    def start(self, words: list[str], folder: Path, environment: dict[str, str], log: IO | None) -> WarmProcess:
        os.umask(umask := os.umask(0o077))
        request = {"words": words, "folder": str(folder), "environment": environment}
        request |= {"parent": os.getpid(), "umask": umask}
        pipes = [] if log else [os.pipe(), os.pipe()]
        outputs = [log.fileno()] * 2 if log else [writing for _, writing in pipes]
        with _adopting():
            socket.send_fds(self._socket, [json.dumps(request).encode()], outputs)
            pid = self._socket.recv(32)
        for _, writing in pipes:
            os.close(writing)
        assert pid, "what forks processes for tests is gone: see what it wrote to standard error"
        return WarmProcess(int(pid), [sys.executable, *words], [open(reading) for reading, _ in pipes])

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


@contextmanager
def _adopting() -> Iterator[None]:
    """Let orphans of our children be ours meanwhile."""
    prctl = ctypes.CDLL(None).prctl
    prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(SET_CHILD_SUBREAPER, 0, 0, 0, 0)
