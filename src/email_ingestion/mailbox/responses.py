"""Takes FETCH answers off the wire for imaplib, which asks six regular expressions about each of their lines.

They are put where imaplib puts them. Every other answer it takes itself.
"""

from __future__ import annotations

import re
from typing import Any

_FETCHED = re.compile(rb"\* (\d+) FETCH (\(.*)\r\n", re.DOTALL)
_LITERAL = re.compile(rb"\{(\d+)\}\Z")


class Responses:
    """Put between imaplib and what reads lines for it."""

    def __init__(self, imap: Any) -> None:
        self._imap = imap
        self._readline, self._take_other = imap.readline, imap._get_response  # noqa: SLF001 - there is no public way
        self._put_back = b""
        imap.readline, imap._get_response = self._line, self._take  # noqa: SLF001 - likewise

    def _line(self) -> bytes:
        line, self._put_back = self._put_back, b""
        return line or self._readline()

    def _take(self) -> Any:
        """One answer, as imaplib's `_get_response`; returns the first line of it."""
        line = self._readline()
        fetched = _FETCHED.fullmatch(line)
        if not fetched:
            self._put_back = line
            return self._take_other()
        answers = self._imap.untagged_responses.setdefault("FETCH", [])
        said = b"%b %b" % fetched.groups()
        while literal := _literal(said):
            answers.append((said, self._imap.read(int(literal[1]))))
            said = self._imap._get_line()  # noqa: SLF001 - as imaplib goes on behind a literal
        answers.append(said)
        return line


def _literal(said: bytes) -> re.Match[bytes] | None:
    """What a literal is announced by; a line that ends in another letter is not searched."""
    return _LITERAL.search(said) if said.endswith(b"}") else None
