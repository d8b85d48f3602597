"""A child process that answers requests, one at a time: MessagePack over a socket pair, large contents beside it.

What crashes, exhausts memory or never returns ends the child only, and the child ends with its parent. What a child
sends is decoded into the types that are expected and nothing else, in a size that is expected: code that took the child
over could send anything. Only one end sends at a time, so a read never takes bytes of the next object.

    number of bytes of the object, number of contents │ bytes of each content │ object │ contents
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import IO, Any, Final, TypeVar

import msgspec
from msgspec.msgpack import Decoder

from email_ingestion.process_limits import describe_thread_limits
from email_ingestion.records import Attachment, Email

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

END_SECONDS = 5.0  # for a child that has hung up on us
UNCAUGHT = 1  # the exit code of Python after an exception that nobody caught
HANG_UP_SECONDS = 0.2  # until a child that we hang up on must have ended
LINE_LENGTH = 2000  # characters of a child's output that are kept of a line
BESIDE_BYTES = 64 * 1024  # of an attachment whose content is not copied into the object and out of it
NO_LIMIT = 2**62  # of what a parent sends
_HEAD: Final = struct.Struct(">QI")
_LENGTH: Final = struct.Struct(">Q")
_ENCODER: Final = msgspec.msgpack.Encoder()

T = TypeVar("T")


class ChildProcess:
    """Runs `python -m MODULE FD ARGUMENTS…`, where FD is the socket. One thread uses it; any may call `kill`.

    With `on_output` it is a process group of its own, which ends as a whole, and each line that it prints is handed
    to `on_output`; without, it prints to our standard error.
    """

    def __init__(
        self, module: str, *arguments: str, answer: Any, on_output: Callable[[str], None] | None = None
    ) -> None:
        """`answer` is the type of its answers."""
        self._command = (module, *arguments)
        self._decoder = Decoder(answer)
        self._on_output = on_output
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def is_running(self) -> bool:
        """Whether the process is there; one that has died meanwhile is cleared away."""
        if self._child and self._child.poll() is not None:
            self.close()
        return self._child is not None

    def start(self, request: Any, seconds: float, limit: int) -> Any:
        """Start the process and return its answer to a first request, which says that it is up.

        One that fails at once is started again without cached bytecode: a disk that was full leaves truncated files
        (Python before 3.12.8 and 3.13.1), and no import of them would ever succeed again.
        Raises OSError when it cannot be started, EOFError when it ends at once, TimeoutError after `seconds`.
        """
        try:
            return self._start(request, seconds, limit)
        except (EOFError, ConnectionError):
            if self._exit_code() != UNCAUGHT:
                raise
            self.close()
            return self._start(request, seconds, limit, "-B", "-X", f"pycache_prefix={os.devnull}")

    def _exit_code(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            return self._child.wait(END_SECONDS) if self._child else None
        return None

    def _start(self, request: Any, seconds: float, limit: int, *options: str) -> Any:
        ours, theirs = socket.socketpair()
        self._socket = ours
        with theirs:
            module, *arguments = self._command
            grouped = self._on_output is not None
            self._child = subprocess.Popen(
                [sys.executable, *options, "-m", module, str(theirs.fileno()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if grouped else subprocess.DEVNULL,
                stderr=subprocess.STDOUT if grouped else None,
                pass_fds=(theirs.fileno(),),
                start_new_session=grouped,
            )
        if self._on_output and self._child.stdout:
            arguments_of_thread = (self._child.stdout, self._on_output)
            reader = threading.Thread(target=_read_lines, args=arguments_of_thread, name=module, daemon=True)
            try:
                reader.start()
            except RuntimeError as error:
                self._child.stdout.close()
                raise OSError(errno.EAGAIN, f"no thread can be started ({describe_thread_limits()})") from error
        return self.ask(request, seconds, limit)[0]

    def ask(
        self,
        request: Any,
        seconds: float,
        limit: int,
        contents: Sequence[bytes] = (),
        on_sent: Callable[[], object] = lambda: None,
    ) -> tuple[Any, list[bytes]]:
        """Return the answer to a request, and the bytes beside it: `limit` in all.

        Raises TimeoutError after `seconds`, OSError or EOFError when the process died or its answer is none.
        """
        connection = self._socket
        if connection is None:
            raise EOFError("there is no child process")
        end = time.monotonic() + seconds
        connection.settimeout(seconds)
        send(connection, request, contents)
        del contents
        on_sent()
        connection.settimeout(max(0.001, end - time.monotonic()))
        return receive(connection, self._decoder, limit)

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


def detach_contents(emails: Iterable[Email | None]) -> tuple[list[Email | None], list[bytes]]:
    """Return records without the contents of large attachments, and these, in order, to be sent beside them."""
    contents: list[bytes] = []
    return [_detached(email, contents) if email else None for email in emails], contents


def _detached(email: Email, contents: list[bytes]) -> Email:
    large = [each.content for each in email.attachments if len(each.content) >= BESIDE_BYTES]
    if not large:
        return email
    contents += large
    left = tuple(
        replace(each, content=b"") if len(each.content) >= BESIDE_BYTES else each for each in email.attachments
    )
    return replace(email, attachments=left)


def attach_contents(emails: Iterable[Email | None], contents: Sequence[bytes]) -> list[Email | None]:
    """Undo `detach_contents`. Raises EOFError when they do not belong together."""
    left = iter(contents)
    whole = [email and _attached(email, left) for email in emails]
    if next(left, None) is not None:
        raise EOFError("the other end sent contents of no attachment")
    return whole


def _attached(email: Email, contents: Iterator[bytes]) -> Email:
    if not any(map(_is_detached, email.attachments)):
        return email
    parts = tuple(
        replace(each, content=_of_size(each.size, contents)) if _is_detached(each) else each
        for each in email.attachments
    )
    return replace(email, attachments=parts)


def _is_detached(attachment: Attachment) -> bool:
    return not attachment.content and attachment.size >= BESIDE_BYTES


def _of_size(size: int, contents: Iterator[bytes]) -> bytes:
    content = next(contents, b"")
    if len(content) != size:
        raise EOFError("the other end sent another content than it said")
    return content


def send(sock: socket.socket, value: Any, contents: Sequence[bytes] = ()) -> None:
    """Send one object, and bytes beside it; raises OSError, TimeoutError among them."""
    body = _ENCODER.encode(value)
    with sock.makefile("wb") as file:
        file.write(_HEAD.pack(len(body), len(contents)) + b"".join(_LENGTH.pack(len(each)) for each in contents))
        file.write(body)
        for content in contents:
            file.write(content)


def receive(sock: socket.socket, decoder: Decoder[T], limit: int = NO_LIMIT) -> tuple[T, list[bytes]]:
    """Receive one object of at most `limit` bytes, and the bytes beside it.

    Raises EOFError when the other end is gone, or sent what the decoder does not take, else OSError.
    """
    with sock.makefile("rb") as file:
        size, count = _HEAD.unpack(_read(file, _HEAD.size))
        if count * _LENGTH.size > limit:
            raise EOFError("the other end announces more than it may send")
        sizes = [_LENGTH.unpack(_read(file, _LENGTH.size))[0] for _ in range(count)]
        if size + sum(sizes) > limit:
            raise EOFError("the other end announces more than it may send")
        body = _read(file, size)
        contents = [_read(file, each) for each in sizes]
    try:
        return decoder.decode(body), contents
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise EOFError(f"the other end sent what cannot be read: {type(error).__name__}") from error


def _read(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError("the other end is gone")
    return data
