"""How urgent a message is, told from its header before it enters the stream; the record is decided later.

A header that says nothing of it, where no route sets a priority, is not even read.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from email_ingestion.parsing import parse_headers
from email_ingestion.records import NORMAL_PRIORITY, Envelope
from email_ingestion.routing import Router

Urgency = Callable[[Envelope, bytes], int]
HEAD_BYTES = 65_536  # where a message may speak of itself as urgent
_FIELD = rb"(?:importance|(?:x-(?:msmail-)?)?priority)[ \t]*:"
_FIRST = re.compile(_FIELD, re.IGNORECASE)
# It begins with a letter to look for, which is five times as fast as to ask everywhere whether a line begins.
_FURTHER = re.compile(rb"\n" + _FIELD, re.IGNORECASE)
_END = re.compile(rb"\n\r?\n")


def urgency(router: Router) -> Urgency:
    """What tells the priority, 0 to 10, of a message by its envelope and its bytes, or the first of them."""

    def of(envelope: Envelope, raw: bytes) -> int:
        if not router.sets_priority and not _speaks(raw):
            return NORMAL_PRIORITY
        return router.priority_of(parse_headers(envelope, raw))

    return of


def _speaks(raw: bytes) -> bool:
    """Whether the header has a field that may say something of it."""
    end = _END.search(raw, 0, HEAD_BYTES)
    return bool(_FIRST.match(raw) or _FURTHER.search(raw, 0, end.start() if end else HEAD_BYTES))
