"""imaplib's IMAP4 with limits on what a server may send: bytes of a line and an answer, and seconds where that counts.

A server that sends one byte now and then satisfies every time-out of a socket. Nothing of what it sends is in an error
here, for it may be a part of somebody's mail: only a status response is the server's own words.
"""

from __future__ import annotations

import imaplib
import io
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from email_ingestion.errors import IMAPProtocolViolation
from email_ingestion.mailbox.response_lines import is_blank, is_throttled, with_line_end

CONNECT_SECONDS = 10.0  # of silence
GREETING_SECONDS = 30.0  # until the server has greeted and told what it can
SLICE_BYTES, BUFFER_BYTES = 64 * 1024, 16 * 1024
# A server may send so much in answer to a command, with what it says in passing; bodies asked for come on top.
ANSWER_BYTES = 8 * 1024 * 1024
BODIES_BYTES = 8 * 1024 * 1024  # of all bodies that one command asks for, beside the largest one: 1 MiB was announced
LINE_BYTES = 128  # counted for each line besides its length: in memory even an empty one takes so much
GREETING_BYTES = 1024  # of what is kept of one that is no IMAP server's


class UnexpectedGreeting(imaplib.IMAP4.abort):
    """What answers does not greet as an IMAP server; `greeting` is the beginning of its first line."""

    def __init__(self, greeting: bytes) -> None:
        super().__init__(f"unexpected response: {greeting[:200]!r}")
        self.greeting = greeting[:GREETING_BYTES]


class MeteredImap4(imaplib.IMAP4):
    """One connection, with TLS where `ssl_context` is given.

    Methods raise imaplib's `error` and `abort`, OSError, and IMAPProtocolViolation where there is no end to an answer.
    """

    def __init__(self, host: str, port: int, ssl_context: ssl.SSLContext | None) -> None:
        self.received_bytes = 0
        self.is_reading = False  # it waits for bytes of the server at this moment
        self._ssl_context = ssl_context
        self._deadline: float | None = None  # time.monotonic() until which what is awaited must have come
        self._unread_line = b""
        self.has_literal = False  # whether one came since the answer began
        self._throttled = False  # a tagged response has asked for slower commands
        self._asked = "the connection"  # or the last command
        self._counted_bytes = 0  # received, with LINE_BYTES for each line
        self._expected_bytes = ANSWER_BYTES  # since the answer began, at most
        self._max_counted_bytes = ANSWER_BYTES  # since the connection was made
        with self.limited_time(GREETING_SECONDS):
            super().__init__(host, port, CONNECT_SECONDS)

    def _create_socket(self, timeout: float | None) -> socket.socket:
        sock: socket.socket = super()._create_socket(timeout)  # type: ignore[misc]  # typeshed leaves it out
        return self._ssl_context.wrap_socket(sock, server_hostname=self.host) if self._ssl_context else sock

    def open(self, host: str = "", port: int = 143, timeout: float | None = None) -> None:
        """Connect; what comes is read under the limit of `limited_time`."""
        super().open(host, port, timeout)
        reader: Any = io.BufferedReader(_SocketReader(self), BUFFER_BYTES)
        if hasattr(self, "_file"):  # Python 3.14 names it otherwise
            self._file: Any = reader
        else:
            self.file = reader

    @contextmanager
    def limited_time(self, seconds: float) -> Iterator[None]:
        """Raise TimeoutError inside when the server takes longer for all it is asked, however much it sends."""
        before = self._deadline
        self._deadline = time.monotonic() + seconds
        try:
            yield
        finally:
            self._deadline = before

    def receive_into(self, buffer: Any) -> int | None:
        """Read what is there; None where the socket does not wait. Raises OSError."""
        if self._deadline is None:
            return _receive(self.sock, buffer)
        left = self._deadline - time.monotonic()
        timeout = self.sock.gettimeout()
        try:
            if left > 0:
                self.sock.settimeout(left if timeout is None else min(left, timeout))
                return _receive(self.sock, buffer)
        except TimeoutError:
            if timeout is not None and timeout < left:
                raise
        finally:
            self.sock.settimeout(timeout)
        raise TimeoutError(f"the server takes too long to answer {self._asked}")

    def begin_answer(self) -> None:
        """Let the server send as much as an answer without bodies may have; nothing else is under way."""
        self._expected_bytes = ANSWER_BYTES
        self._max_counted_bytes = self._counted_bytes + ANSWER_BYTES
        self.has_literal = False

    def expect_bodies(self, count: int, max_bytes: int) -> None:
        """Let the server send `count` bodies more, of at most `max_bytes` each, and of far less all together."""
        size = min(count * max_bytes, max_bytes + BODIES_BYTES)
        self._expected_bytes += size
        self._max_counted_bytes += size

    def peek(self) -> bytes:
        """Return bytes that came from the server and were not read yet, without empty lines; does not wait."""
        reader: Any = getattr(self, "_file", None) or self.file
        timeout = self.sock.gettimeout()
        self.sock.settimeout(0)
        found = b""
        try:
            while (found := bytes(reader.peek(1))).startswith(b"\r\n"):  # it says nothing: nobody is to wait for more
                reader.read(2)
        except OSError:  # TLS has no complete record
            return b""
        finally:
            self.sock.settimeout(timeout)
        return found

    def read(self, size: int) -> bytes:
        """Read `size` bytes in slices, so that `received_bytes` grows during a long literal."""
        self.has_literal = True
        self._counted_bytes += size
        if self._counted_bytes > self._max_counted_bytes:
            raise self._too_much()
        slices: list[bytes] = []
        left = size
        self.is_reading = True
        while left > 0 and (data := super().read(min(left, SLICE_BYTES))):
            slices.append(data)
            left -= len(data)
            self.received_bytes += len(data)
        self.is_reading = False
        return b"".join(slices)

    def readline(self) -> bytes:
        """Read a line, or return the one that was put back."""
        if self._unread_line:
            line, self._unread_line = self._unread_line, b""
            return line
        try:
            self.is_reading = True
            line = super().readline()
            self.is_reading = False
        except self.abort:
            raise
        except self.error as error:  # after which imaplib would read the rest of the line as the next one
            raise self._violation("a line of more than 1,000,000 bytes") from error
        self.received_bytes += len(line)
        self._counted_bytes += len(line) + LINE_BYTES
        if self._counted_bytes > self._max_counted_bytes:
            raise self._too_much()
        self._throttled = self._throttled or is_throttled(line)
        return with_line_end(line)

    def _get_line(self) -> bytes:
        """Read a line without its end, as imaplib does, which quotes what it cannot read and keeps what it reads."""
        line = self.readline()
        self.check_line(line)
        return line[:-2]

    def check_line(self, line: bytes) -> None:
        """Raise `abort` where the connection ended within a line, or before it."""
        if not line:
            raise self.abort("socket error: EOF")
        if not line.endswith(b"\r\n"):
            raise self.abort("socket error: EOF within a line")

    def _read_line_with_text(self) -> bytes:
        """Read a line, and leave out empty ones before it."""
        while is_blank(line := self.readline()):
            pass
        return line

    def _too_much(self) -> IMAPProtocolViolation:
        return self._violation(f"more than {self._expected_bytes:,} bytes")

    def _violation(self, what: str) -> IMAPProtocolViolation:
        return IMAPProtocolViolation(
            f"the IMAP server violates the protocol: it sends {what} in answer to {self._asked}; the connection ended"
        )


class _SocketReader(io.RawIOBase):
    """What a connection receives, for a buffered reader."""

    def __init__(self, imap4: MeteredImap4) -> None:
        self._imap4 = imap4

    def readable(self) -> bool:
        """Whether it can be read."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read what is there."""
        return self._imap4.receive_into(buffer)


def _receive(sock: socket.socket, buffer: Any) -> int | None:
    try:
        return sock.recv_into(buffer)
    except BlockingIOError:
        return None
