"""Generated mail for very large mailboxes: message number `index` is a pure function of the index.

Nothing is kept: the bytes are made again each time they are read.
"""

from __future__ import annotations

from datetime import UTC, datetime

EPOCH_MS = 1_700_000_000_000
STEP_MS = 60_000

_TEMPLATE = (
    "Message-ID: <bulk-{index}@bulk.example.net>\r\n"
    "Date: {date}\r\n"
    "From: Sender {sender} <sender{sender}@example.net>\r\n"
    "To: Demo <demo@example.com>\r\n"
    "Subject: Bulk message {index}\r\n"
    "MIME-Version: 1.0\r\n"
    "Content-Type: text/plain; charset=utf-8\r\n"
    "\r\n"
    "This is generated message number {index}.\r\n"
)
_LINE = "The quick brown fox jumps over the lazy dog while the mailbox fills up.\r\n"


def bulk_date(index: int) -> int:
    """Return the INTERNALDATE of a generated message in epoch milliseconds."""
    return EPOCH_MS + index * STEP_MS


def bulk_message_id(index: int) -> str:
    """Return the Message-ID of a generated message."""
    return f"<bulk-{index}@bulk.example.net>"


def bulk_message(index: int) -> bytes:
    """Return the raw bytes of a generated message, between 0.5 and 4 KB."""
    date = datetime.fromtimestamp(bulk_date(index) / 1000, UTC).strftime("%a, %d %b %Y %H:%M:%S +0000")
    head = _TEMPLATE.format(index=index, date=date, sender=index % 97)
    return (head + _LINE * (3 + index * 7919 % 48)).encode("ascii")
