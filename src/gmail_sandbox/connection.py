"""One IMAP connection as bytes: reading commands with their literals, writing with back-pressure.

Faults of the transport act here: silence, trickle, small segments, a connection lost inside a literal. They need the
socket itself, which is why IMAP is served with asyncio's streams.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gmail_sandbox.backend import Backend

LINE_LIMIT = 256 * 1024
APPEND_LIMIT = 35_651_584
_SLICE = 64 * 1024
_LITERAL = re.compile(rb"\{(\d+)(\+?)\}$")
# LITERAL- allows non-synchronising literals up to this size (RFC 7888 section 5).
_NONSYNC_LIMIT = 4096


class ConnectionEnded(Exception):
    """The client is gone, or a fault ended the connection."""


class LineTooLong(Exception):
    """A line is longer than any command needs."""


class LiteralRefused(Exception):
    """A literal is too large. `args[0]` is the tagged answer."""


class ClientConnection:
    """Bytes in and out of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, backend: Backend) -> None:
        """Take over an open connection."""
        self.silent = False
        self.bytes_sent = 0
        self._bytes_left: int | None = None  # bytes to send before the connection ends
        self._reader, self._writer = reader, writer
        self._faults, self._quota, self._stats = backend.faults, backend.quota, backend.stats

    @property
    def peer(self) -> str:
        """Return the client's address."""
        name = self._writer.get_extra_info("peername")
        return str(name[0]) if name else "unknown"

    async def read_line(self) -> bytes:
        """Return one line without its end; a bare LF ends a line too."""
        try:
            line = await self._reader.readline()
        except ValueError as error:
            raise LineTooLong from error
        except OSError as error:
            raise ConnectionEnded from error
        await self._apply_silence()
        if not line.endswith(b"\n"):
            raise ConnectionEnded
        return line.rstrip(b"\r\n")

    async def read_literals(self, line: bytes) -> list[bytes]:
        """Return the command that starts with `line` as text and literals in turn, beginning and ending with text."""
        pieces = [line]
        while match := _LITERAL.search(pieces[-1]):
            pieces[-1] = pieces[-1][: match.start()]
            pieces.append(await self._literal(int(match[1]), synchronising=not match[2]))
            pieces.append(await self.read_line())
        return pieces

    async def _literal(self, size: int, *, synchronising: bool) -> bytes:
        if size > APPEND_LIMIT:
            raise LiteralRefused("NO [TOOBIG] Message too large. (Failure)")
        if synchronising:
            await self.send(b"+ go ahead\r\n")
        elif size > _NONSYNC_LIMIT:
            raise LiteralRefused("BAD Non-synchronizing literal too large")
        try:
            literal = await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, OSError) as error:
            raise ConnectionEnded from error
        await self._apply_silence()
        return literal

    async def _apply_silence(self) -> None:
        if not self.silent:
            return
        with suppress(OSError):
            while await self._reader.read(_SLICE):
                pass
        raise ConnectionEnded

    async def send(self, data: bytes) -> None:
        """Write an answer and wait until the peer keeps up."""
        fault = self._faults.consume("split_lines")
        if fault is None:
            await self._write(data)
        else:
            await self._write_slowly(data, int(fault.get_number("bytes")), fault.get_number("gap_ms"))

    async def send_body(self, body: memoryview) -> None:
        """Write the bytes of a literal in slices, so that a slow peer holds little memory."""
        dropped = self._faults.consume("drop_mid_literal") if len(body) else None
        if dropped is not None:
            await self._write(bytes(body[: min(int(dropped.get_number("after_bytes")), len(body) - 1)]))
            self.close()
            raise ConnectionEnded
        trickle = self._faults.consume("trickle")
        if trickle is not None:
            await self._write_slowly(bytes(body), int(trickle.get_number("bytes")), trickle.get_number("interval_ms"))
            return
        for start in range(0, len(body), _SLICE):
            await self._write(bytes(body[start : start + _SLICE]))

    async def _write_slowly(self, data: bytes, size: int, pause_ms: float) -> None:
        for start in range(0, len(data), max(size, 1)):
            await self._write(data[start : start + max(size, 1)])
            await asyncio.sleep(pause_ms / 1000)

    async def _write(self, data: bytes) -> None:
        if self.silent:
            return
        if self._writer.is_closing():
            raise ConnectionEnded
        if self._bytes_left is not None:
            data, self._bytes_left = data[: self._bytes_left], self._bytes_left - len(data)
        self._writer.write(data)
        self.bytes_sent += len(data)
        self._stats.bytes_sent += len(data)
        try:
            await self._writer.drain()
        except OSError as error:
            raise ConnectionEnded from error
        self._quota.count(len(data))
        if self._bytes_left is not None and self._bytes_left <= 0:
            self.close()
            raise ConnectionEnded

    def limit_output(self, size: int) -> None:
        """End the connection after `size` more bytes."""
        self._bytes_left = size

    def close_with_bye(self, text: str) -> None:
        """Write `* BYE text` without waiting, and close once it is sent."""
        if self._writer.is_closing():
            return
        if not self.silent:
            self._writer.write(f"* BYE {text}\r\n".encode())
        self.close()

    def close(self) -> None:
        """Close once everything written is sent."""
        self._writer.close()

    async def wait_closed(self) -> None:
        """Wait until the connection is gone."""
        with suppress(OSError):
            await self._writer.wait_closed()
