"""`python warm_process.py FD KIND ROOM`: imports what such programs do, and forks one of them for each request.

A program of its own, so that nothing of the tests is loaded in what it forks. See `warm_start`.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
# In this order, for the log keeps `rich` from what it imports. What a running process imports later is among them:
# the ledger and HTTP of a producer alone are 0.4 s of CPU.
LIBRARIES = [
    "encodings.idna",
    "httpcore",
    "httpx",
    "sqlalchemy.dialects.sqlite",
    "uvicorn.lifespan.off",
    "uvicorn.loops.asyncio",
    "uvicorn.protocols.http.h11_impl",
]
PROCESSES = [
    "email_ingestion.cli.processes",
    "email_ingestion.app.producer",
    "email_ingestion.app.worker",
    "email_ingestion.ledger.store",
    "email_ingestion.http_requests",
    "email_ingestion.ledger.migrate",
    "email_ingestion.parsing.parser_process",
]
PARSER = "email_ingestion.parsing.parser_process"
ARGUMENTS = 45  # where the addresses of arguments and environment begin in /proc/PID/stat, behind the name


def main() -> None:
    """Fork until the tests hang up; what is forked returns from here as the started program, and runs."""
    gc.disable()  # as the process itself does
    requests, kind = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
    sys.path[0] = str(PROJECT)  # or what lies beside this file would be found in the place of libraries
    for name in [*PROCESSES, *LIBRARIES, *(_of_commands() if kind == "commands" else [])]:
        importlib.import_module(name)
    assert threading.active_count() == 1, "a thread would be missing in what is forked"
    gc.freeze()  # what is forked need not visit all this for its own garbage
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 1 << 20, 2)
        if not message:
            return
        request = json.loads(message)
        if _fork_orphan(requests, request["parent"]):
            for descriptor in descriptors:
                os.close(descriptor)
            continue
        requests.close()
        _end_as_python(partial(_become, request, descriptors))
        return


def _of_commands() -> list[str]:
    """Return all modules of ours: each command imports others."""
    package = importlib.import_module("email_ingestion")
    found = [each.name for each in pkgutil.walk_packages(package.__path__, "email_ingestion.")]
    return [
        name for name in found if not name.startswith("email_ingestion.ledger.migrations.") and "__main__" not in name
    ]


def _fork_orphan(requests: socket.socket, parent: int) -> bool:
    """Fork a process that its grandparent, the tests, adopt, and tell them its PID; return False in that process."""
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        return True
    if os.fork():
        os._exit(0)
    while os.getppid() != parent:
        time.sleep(0.0005)
    requests.send(str(os.getpid()).encode())
    return False


def _end_as_python(program: Callable[[], None]) -> None:
    """Run the program and do what Python does at its end, but for taking apart all that was imported.

    That would have each fork copy its pages, for 0.1 s of CPU. An end by an exception is left to Python.
    """
    try:
        program()
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            raise
        code = end.code or 0
    else:
        code = 0
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.exit(code)  # Python has a code for it
    os._exit(code & 0xFF)


def _become(request: dict[str, Any], outputs: list[int]) -> None:
    """Be the process that was asked for, up to its main program."""
    words = request["words"]
    os.chdir(request["folder"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for descriptor, number, name in zip(outputs, (1, 2), ("stdout", "stderr"), strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
        _reopen(number, name)
    environment = [f"{name}={value}" for name, value in request["environment"].items()]
    if words[0].endswith("worker.py") and _fork_parser(environment):
        return
    _show([sys.executable, *words], environment)
    sys.orig_argv = [sys.executable, *words]
    gc.enable()
    if words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], request["folder"]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def _fork_parser(environment: list[str]) -> bool:
    """Fork the worker's first parser process, which is 0.2 s of CPU too; return True when that one has ended.

    It waits for the descriptors that the worker gives to what it starts. Later ones are Pythons of their own.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid:
        theirs.close()
        _hand_out(_Forked(pid), ours)
        return False
    ours.close()
    command = [sys.executable, "-m", PARSER]
    _show(command, environment)
    with theirs:
        message, descriptors, _, _ = socket.recv_fds(theirs, 4096, 3)
    if message:
        command = json.loads(message)
        for descriptor, number in zip(descriptors, (int(command[3]), 1, 2), strict=True):
            os.dup2(descriptor, number)
            if descriptor != number:
                os.close(descriptor)
        _show(command, environment)
        sys.orig_argv, sys.argv = command, command[2:]
        gc.enable()
        runpy.run_module(PARSER, run_name="__main__", alter_sys=True)
    return True


class _Forked(subprocess.Popen[bytes]):
    """A child that was forked, for what waits for it."""

    def __init__(self, pid: int) -> None:
        self.args, self.pid, self.returncode = [], pid, None
        self.stdin = self.stdout = self.stderr = None
        self._waitpid_lock = threading.Lock()
        self._child_created = True


def _hand_out(parser: _Forked, connection: socket.socket) -> None:
    """Let the worker have this parser when it starts one for the first time."""

    def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        if command[1:3] == ["-m", PARSER] and connection.fileno() >= 0:
            with connection, Path(os.devnull).open("wb") as nowhere:
                if parser.poll() is None:
                    socket.send_fds(
                        connection, [json.dumps(command).encode()], [*options["pass_fds"], nowhere.fileno(), 2]
                    )
                    return parser
        return subprocess.Popen(command, **options)

    def end() -> None:
        if connection.fileno() >= 0:
            connection.close()
            parser.wait()

    atexit.register(end)
    stand_in = ModuleType("subprocess")
    vars(stand_in).update(vars(subprocess) | {"Popen": start})
    importlib.import_module("email_ingestion.child_process").subprocess = stand_in  # type: ignore[attr-defined]


def _reopen(number: int, name: str) -> None:
    """Make `sys.stdout` or `sys.stderr` anew as Python does: each knows whether its file can be sought in."""
    before = getattr(sys, name)
    binary = open(number, "wb", closefd=False)  # noqa: SIM115 - as long as the process
    stream = io.TextIOWrapper(binary, before.encoding, before.errors, line_buffering=name == "stderr")
    setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)


def _show(words: list[str], environment: list[str]) -> None:
    """Let /proc show these, in the room that was left for them."""
    addresses = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[ARGUMENTS : ARGUMENTS + 4]
    arguments, arguments_end, variables, variables_end = map(int, addresses)
    # A last byte that is no zero says that this is a title: it is shown up to the first zero, and read as words.
    _write(arguments, arguments_end, " ".join(words), b"-")
    _write(variables, variables_end, "\0".join(environment), b"\0")


def _write(start: int, end: int, text: str, last: bytes) -> None:
    block = os.fsencode(text)
    if len(block) < end - start - 1:
        ctypes.memmove(start, block.ljust(end - start - 1, b"\0") + last, end - start)


if __name__ == "__main__":
    main()
