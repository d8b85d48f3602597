"""`python warm_process.py FD KIND ROOM`: imports what such programs do, and forks one of them for each request.

A program of its own, so that nothing of the tests is loaded in what it forks. See `warm_start`.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import socket
import sys
import threading
import time
from pathlib import Path
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
]
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
        _become(request, descriptors)
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
    _show([sys.executable, *words], [f"{name}={value}" for name, value in request["environment"].items()])
    sys.orig_argv = [sys.executable, *words]
    gc.enable()
    if words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], request["folder"]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


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
