"""A child process that answers requests, one at a time: Python objects as pickles over a socket pair.

What crashes, exhausts memory or never returns ends the child only, and the child ends with its parent. A large message
is neither copied into a pickle nor out of one. Both ends are this program: nothing from outside is ever unpickled.
Only one end sends at a time, so a read never takes bytes of the next object.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from operator import attrgetter
from typing import IO, Any, Final

from email_ingestion import records

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

HANG_UP_SECONDS = 0.2  # until a child that we hang up on must have ended
LINE_LENGTH = 2000  # characters of a child's output that are kept of a line


class ChildProcess:
    """Runs `python -m MODULE FD ARGUMENTS…`, where FD is the socket. One thread uses it; any may call `kill`.

    With `on_output` it is a process group of its own, which ends as a whole, and each line that it prints is handed
    to `on_output`; without, it prints to our standard error.
    """

    def __init__(self, module: str, *arguments: str, on_output: Callable[[str], None] | None = None) -> None:
        self._command = (module, *arguments)
        self._on_output = on_output
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def is_running(self) -> bool:
        """Whether the process is there; one that has died meanwhile is cleared away."""
        if self._child and self._child.poll() is not None:
            self.close()
        return self._child is not None

    def start(self, request: Any, seconds: float) -> Any:
        """Start the process and return its answer to a first request, which says that it is up.

        Raises OSError when it cannot be started, EOFError when it ends at once, TimeoutError after `seconds`.
        """
        ours, theirs = socket.socketpair()
        self._socket = ours
        with theirs:
            module, *arguments = self._command
            grouped = self._on_output is not None
            self._child = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if grouped else subprocess.DEVNULL,
                stderr=subprocess.STDOUT if grouped else None,
                pass_fds=(theirs.fileno(),),
                start_new_session=grouped,
            )
        if self._on_output and self._child.stdout:
            arguments_of_thread = (self._child.stdout, self._on_output)
            threading.Thread(target=_read_lines, args=arguments_of_thread, name=module, daemon=True).start()
        return self.ask(request, seconds)

    def ask(self, request: Any, seconds: float, on_sent: Callable[[], object] = lambda: None) -> Any:
        """Return the answer to a request. Raises TimeoutError after `seconds`, OSError or EOFError when it died."""
        connection = self._socket
        if connection is None:
            raise EOFError("there is no child process")
        end = time.monotonic() + seconds
        connection.settimeout(seconds)
        send(connection, request)
        on_sent()
        connection.settimeout(max(0.001, end - time.monotonic()))
        return receive(connection)

    def kill(self) -> None:
        """End the process now, and with it the processes that it started if it is a group of its own."""
        child = self._child
        if child and self._on_output:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
        elif child:
            child.kill()

    def close(self, seconds: float = HANG_UP_SECONDS) -> int | None:
        """Hang up, and kill the process if it is still there after `seconds`.

        Return its exit code, negative for a signal; None when none was running.
        """
        if self._socket:
            self._socket.close()
            self._socket = None
        child = self._child
        if not child:
            return None
        try:
            code = child.wait(seconds)  # it sees that we hung up, or is dead already: then the code says why
        except subprocess.TimeoutExpired:
            self.kill()
            code = child.wait()
        if code:
            self.kill()  # what it had started
        self._child = None
        return code


def _read_lines(output: IO[bytes], on_output: Callable[[str], None]) -> None:
    with output:
        while line := output.readline(LINE_LENGTH):
            text = line.decode("utf-8", "replace").rstrip()
            if text:
                on_output(text)


def connect_to_parent() -> socket.socket:
    """Return the socket to the parent; for the child, whose first argument it is."""
    descriptor = int(sys.argv[1])
    connection = socket.socket(fileno=descriptor)
    connection.set_inheritable(False)
    return connection


def end_with_parent(connection: socket.socket, is_busy: Callable[[], bool]) -> None:
    """Let the child's process group end when the parent is gone while `is_busy`; for a child in a group of its own."""

    def watch() -> None:
        poll = select.poll()
        poll.register(connection.fileno(), 0)  # a hang-up is always reported
        poll.poll()
        if is_busy():
            os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()


@contextmanager
def killed_with_parent(connection: socket.socket) -> Iterator[None]:
    """Let the kernel end the child when the parent hangs up meanwhile, even in a loop that runs no Python (Linux).

    Nothing may be sent either way meanwhile. The signal of the parent's death would come with the end of its thread.
    """
    if sys.platform != "linux":
        yield
        return
    signal.signal(signal.SIGIO, signal.SIG_DFL)  # it ends the process
    flags = fcntl.fcntl(connection, fcntl.F_GETFL)
    fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(connection, fcntl.F_SETFL, flags | os.O_ASYNC)
    try:
        poll = select.poll()
        poll.register(connection.fileno(), 0)
        if poll.poll(0):  # it hung up before
            sys.exit(1)
        yield
    finally:
        fcntl.fcntl(connection, fcntl.F_SETFL, flags)


def _by_fields(record: type) -> Callable[[Any], tuple[type, tuple[Any, ...]]]:
    values = attrgetter(*(field.name for field in fields(record)))
    return lambda one: (record, values(one))


# Pickle a record as its class and fields: the way of a frozen dataclass with slots takes twice as long.
_RECORDS: Final = {
    one: _by_fields(one) for one in vars(records).values() if isinstance(one, type) and is_dataclass(one)
}


def send(sock: socket.socket, value: Any) -> None:
    """Send one object; raises OSError, TimeoutError among them."""
    with sock.makefile("wb") as file:
        pickler = pickle.Pickler(file, protocol=pickle.HIGHEST_PROTOCOL)
        pickler.dispatch_table = _RECORDS
        pickler.dump(value)


def receive(sock: socket.socket) -> Any:
    """Receive one object; raises EOFError when the other end is gone, else OSError."""
    with sock.makefile("rb") as file:
        try:
            return pickle.load(file)  # noqa: S301 - see the module's docstring
        except pickle.UnpicklingError as error:
            raise EOFError("the other end is gone") from error
