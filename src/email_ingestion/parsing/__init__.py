"""Raw bytes to a record that people can use; where messages come from and go to is no business of this room."""

from __future__ import annotations

from email_ingestion.parsing.defects import Defect
from email_ingestion.records import Email, Envelope

__all__ = ["Defect", "headline", "parse"]


def parse(envelope: Envelope, raw: bytes) -> Email:
    """The record of any bytes; never raises, and what is wrong with them is listed in its `defects`.

    Message ids keep their angle brackets. Time and memory are bounded by `limits`.
    """
    from email_ingestion.parsing import record  # noqa: PLC0415 - 11 MB that a worker leaves to its parser process

    return record.parse(envelope, raw)


def headline(envelope: Envelope, raw: bytes) -> Email:
    """What the header alone tells of subject, sender, list, machine, verdicts and priority; never raises."""
    from email_ingestion.parsing import record  # noqa: PLC0415 - and a producer, unless somebody ranks its mail

    return record.headline(envelope, raw)
