"""Messages and envelopes for the tests of parsing."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from email_ingestion.email_json import as_json
from email_ingestion.records import Email, Envelope


def envelope() -> Envelope:
    """Any envelope: parsing only passes it on."""
    return Envelope(
        account="me",
        mailbox="INBOX",
        uidvalidity=1,
        uid=1,
        gm_msgid=1,
        gm_thrid=1,
        labels=(),
        flags=(),
        internaldate=datetime(2024, 8, 5, tzinfo=UTC),
        size=0,
        sha256="0" * 64,
    )


def strings(email: Email) -> list[str]:
    """Every text of a record, wherever it is."""
    return list(_texts(as_json(email, max_attachment_bytes=-1)))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for one in value.values() for text in _texts(one))
    elif isinstance(value, list):
        yield from (text for one in value for text in _texts(one))
