"""Listens in on imaplib: how many bytes came, and whether the server asks us to slow down.

Gmail says so at the *end* of a tagged answer's text, which imapclient shows to nobody: `A2 OK Success [THROTTLED]`.
"""

from __future__ import annotations

import re
from typing import Any

FIRST_PACE = 0.05  # seconds; doubled by every throttled command, halved by every other one, as Dovecot's imapc does
LONGEST_PACE = 16.0
SLICE_BYTES = 64 * 1024

_THROTTLED = re.compile(rb"^[A-Z]+\d+ (?:OK|NO|BAD) .*\[THROTTLED\]\s*$", re.IGNORECASE)


class Meter:
    """Put between imaplib and its socket."""

    def __init__(self, imap: Any) -> None:
        self.received = 0  # bytes
        self.commands = 0  # that were completed
        self.pace = 0.0  # seconds to wait before the next command
        self._throttled = False
        self._read, self._readline = imap.read, imap.readline
        imap.read, imap.readline = self._counted_read, self._counted_readline

    def settle(self) -> None:
        """A command is over: choose the pace of the next one."""
        self.commands += 1
        if self._throttled:
            self.pace = min(LONGEST_PACE, self.pace * 2 or FIRST_PACE)
        elif self.pace:
            self.pace = self.pace / 2 if self.pace > FIRST_PACE else 0.0
        self._throttled = False

    def _counted_read(self, size: int) -> bytes:
        """In slices, so that a long literal is seen to grow."""
        slices: list[bytes] = []
        left = size
        while left > 0 and (data := self._read(min(left, SLICE_BYTES))):
            slices.append(data)
            left -= len(data)
            self.received += len(data)
        return b"".join(slices)

    def _counted_readline(self) -> bytes:
        line: bytes = self._readline()
        self.received += len(line)
        if line.endswith(b"[THROTTLED]\r\n") and _THROTTLED.match(line):
            self._throttled = True
        return line
