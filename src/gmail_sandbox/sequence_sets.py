"""Sequence sets (RFC 3501 section 9): parsing `1:4,9:*` and resolving it against a sorted list of UIDs.

Work grows with the ranges and what they match, never with the size of the mailbox.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, NamedTuple

from gmail_sandbox.imap_syntax import ParseError

if TYPE_CHECKING:
    from collections.abc import Sequence

_SET = re.compile(rb"(\d+|\*)(:(\d+|\*))?(,(\d+|\*)(:(\d+|\*))?)*")


class UidRange(NamedTuple):
    """One range; None is the asterisk."""

    first: int | None
    last: int | None


def is_set(value: bytes) -> bool:
    """Tell whether the text has the form of a sequence set."""
    return _SET.fullmatch(value) is not None


def parse_set(value: bytes) -> tuple[UidRange, ...]:
    """Return the ranges of a sequence set."""
    if not is_set(value):
        raise ParseError("a sequence set was expected")
    return tuple(_span(part) for part in value.split(b","))


def _span(part: bytes) -> UidRange:
    first, colon, last = part.partition(b":")
    return UidRange(_number(first), _number(last if colon else first))


def _number(text: bytes) -> int | None:
    return None if text == b"*" else int(text)


def indexes_of_uids(spans: Sequence[UidRange], uids: Sequence[int]) -> list[range]:
    """Return the positions in `uids` that the set names, ascending and without overlap.

    `n:*` always contains the last message, even when its UID is below n.
    """
    if not uids:
        return []
    found = []
    for low, high in _ordered(spans, uids[-1]):
        found.append(range(bisect_left(uids, low), bisect_right(uids, high)))
    return _merged(found)


def indexes_of_numbers(spans: Sequence[UidRange], count: int) -> list[range]:
    """Return the positions that a set of message sequence numbers names; BAD beyond the last one."""
    found = []
    for low, high in _ordered(spans, count):
        if low < 1 or high > count:
            raise ParseError("there is no message with that number")
        found.append(range(low - 1, high))
    return _merged(found)


def _ordered(spans: Sequence[UidRange], last: int) -> list[tuple[int, int]]:
    pairs = []
    for span in spans:
        ends = [last if end is None else end for end in span]
        pairs.append((min(ends), max(ends)))
    return pairs


def _merged(ranges: list[range]) -> list[range]:
    merged: list[range] = []
    for part in sorted((r for r in ranges if r), key=lambda r: r.start):
        if merged and part.start <= merged[-1].stop:
            merged[-1] = range(merged[-1].start, max(merged[-1].stop, part.stop))
        else:
            merged.append(part)
    return merged


def compact(numbers: Sequence[int]) -> bytes:
    """Return ascending numbers as a set, as ESEARCH and COPYUID want them."""
    parts: list[bytes] = []
    start = 0
    for at in range(1, len(numbers) + 1):
        if at == len(numbers) or numbers[at] != numbers[at - 1] + 1:
            first, last = numbers[start], numbers[at - 1]
            parts.append(b"%d" % first if first == last else b"%d:%d" % (first, last))
            start = at
    return b",".join(parts)
