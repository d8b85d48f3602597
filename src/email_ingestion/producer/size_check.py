"""Compares what came of a message with what the server had announced, and chooses between two answers.

Servers miscount, some for every message, and some send a message cut or empty. What has another size than announced is
asked for once more: twice the same bytes are the message. Nothing empty is taken for a message of which a size was
announced.
"""

from __future__ import annotations

from typing import NamedTuple

from email_ingestion.mailbox import MessageSummary
from email_ingestion.stream import Miscounts

MARGIN_SHARE = 1.2  # of the announced size, and
MARGIN_BYTES = 1024 * 1024  # beyond it: the larger of both is what a download may have


class Answer(NamedTuple):
    """What came for a message: its bytes are not needed to compare."""

    size: int  # bytes; 0 for an empty string and for NIL
    sha256: str


def max_bytes(summary: MessageSummary, if_unknown: int) -> int:
    """Return the most bytes that may come for a message; `if_unknown` where no size can be read."""
    size = summary.announced
    return if_unknown if size is None else max(int(MARGIN_SHARE * size), size + MARGIN_BYTES)


class SizeCheck:
    """The sizes of one account, on one connection. Methods raise what `RedisLink.call` raises."""

    def __init__(self, miscounts: Miscounts) -> None:
        self._miscounts = miscounts
        self._in_a_row = True  # perhaps some in Redis, from an earlier connection

    def fits(self, summary: MessageSummary, size: int) -> bool:
        """Whether so many bytes were announced; that ends a row of miscounts."""
        if size != summary.announced:
            return False
        if self._in_a_row:
            self._in_a_row = False
            self._miscounts.end_row()
        return True

    def is_trusted(self, size: int) -> bool:
        """Whether bytes of another size than announced are taken at once; empty ones never are."""
        return size > 0 and self._miscounts.expected()

    def choose(self, summary: MessageSummary, first: Answer, second: Answer) -> tuple[Answer | None, bool]:
        """Return the answer to keep, None where there is none, and whether it has another size than announced."""
        longest = max(second, first, key=lambda answer: answer.size)
        if summary.announced is None:
            return (longest if longest.size else None), False
        if longest.size and summary.announced in {first.size, second.size}:
            return (second if second.size == summary.announced else first), False
        if not first.size or not second.size:  # what came once may be cut, for the server has trouble with it
            return None, False
        if first == second:
            self._in_a_row = True
            self._miscounts.add()
        else:
            self.fits(summary, summary.announced)  # no proof, so the row is over
        return longest, True
