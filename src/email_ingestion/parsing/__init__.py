"""Parsing of raw messages: `parse` returns the record of any bytes."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from email_ingestion.parsing.defects import Defect
from email_ingestion.records import Email, Envelope

__all__ = ["Defect", "addresses_in", "addresses_of", "parse", "parse_date", "parse_headers"]


def parse(envelope: Envelope, raw: bytes) -> Email:
    """Return the record of any bytes; never raises: the record's `defects` list the faults of the message.

    Message ids keep their angle brackets. `limits` bounds time and memory.
    """
    from email_ingestion.parsing import record  # noqa: PLC0415 - 11 MB that a worker leaves to its parser process

    return record.parse(envelope, raw)


def parse_headers(envelope: Envelope, raw: bytes) -> Email:
    """Return a record of the header alone: subject, sender, list, automatic mail, authentication, priority.

    Never raises.
    """
    from email_ingestion.parsing import record  # noqa: PLC0415 - a producer needs it only when routes set priorities

    return record.parse_headers(envelope, raw)


def addresses_of(raw: bytes, fields: Collection[str]) -> tuple[str, ...]:
    """Return the addresses in the header fields of a message that have these lower-case names. Never raises."""
    from email_ingestion.parsing import record  # noqa: PLC0415 - as above

    return record.addresses_of(raw, fields)


def addresses_in(value: str) -> tuple[str, ...]:
    """Return the addresses in the decoded value of a header field."""
    from email_ingestion.parsing import addresses, defects  # noqa: PLC0415 - as above

    return tuple(each.addr for each in addresses.parse([value], defects.Defects()))


def parse_date(raw: bytes) -> datetime | None:
    """Return the Date field of a message in UTC; None where it is missing or unreadable. Never raises."""
    from email_ingestion.parsing import record  # noqa: PLC0415 - only for a server that states no date

    return record.parse_date(raw)
