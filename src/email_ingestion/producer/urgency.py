"""How urgent a message is, told from its header before it enters the stream; the record is decided later.

A header that says nothing of it, where no route sets a priority, is not even read.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from email_ingestion.email import NORMAL_PRIORITY, Envelope
from email_ingestion.parsing import headline
from email_ingestion.routing import Router

Urgency = Callable[[Envelope, bytes], int]
HEAD_BYTES = 65_536  # where a message may speak of itself as urgent
_SAYS = re.compile(rb"^(?:importance|(?:x-(?:msmail-)?)?priority)[ \t]*:", re.IGNORECASE | re.MULTILINE)
_END = re.compile(rb"\r?\n\r?\n")


def urgency(router: Router) -> Urgency:
    """What tells the priority, 0 to 10, of a message by its envelope and its bytes, or the first of them."""

    def of(envelope: Envelope, raw: bytes) -> int:
        if not router.ranks:
            end = _END.search(raw, 0, HEAD_BYTES)
            if not _SAYS.search(raw, 0, end.start() if end else HEAD_BYTES):
                return NORMAL_PRIORITY
        return router.priority_of(headline(envelope, raw))

    return of
