"""The Date field as a moment in UTC, tolerant of what programs write; other times of a message are not its business."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from email_ingestion.parsing.defects import Defect, Defects

_LONGEST: Final = 200  # no date is longer, and int() of a long run of digits is quadratic
_LONGEST_ISO: Final = 40


def parse(values: list[str], defects: Defects) -> datetime | None:
    """The first readable date, aware, in UTC; a date without a zone is taken as UTC (RFC 5322, section 3.3: -0000)."""
    for value in values:
        moment = _rfc5322(value[:_LONGEST]) or _iso(value.strip())
        if moment:
            return moment
    defects.note(Defect.DATE_INVALID if values else Defect.DATE_MISSING)
    return None


def _rfc5322(value: str) -> datetime | None:
    try:
        return _utc(parsedate_to_datetime(value))
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _iso(value: str) -> datetime | None:
    try:
        return _utc(datetime.fromisoformat(value)) if len(value) <= _LONGEST_ISO else None
    except (ValueError, OverflowError):
        return None


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
