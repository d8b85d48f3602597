"""Attachments written for machines: delivery status (RFC 3464), abuse report (RFC 5965), calendar (RFC 5545)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from email_ingestion.parsing import charsets, headers, limits
from email_ingestion.parsing.defects import Defects
from email_ingestion.records import AbuseReport, Attachment, Bounce, Calendar, RecipientStatus

_STATUS: Final = frozenset({"message/delivery-status", "message/global-delivery-status"})
_FEEDBACK: Final = "message/feedback-report"
_CALENDAR: Final = "text/calendar"
_GROUPS: Final = re.compile(rb"\n(?:[ \t]*\n)+")
_METHOD: Final = re.compile(r"^METHOD(?:;[^:\n]{0,200})?:[ \t]*([A-Za-z-]{1,40})", re.MULTILINE)

Values = Mapping[str, list[str]]


def parse_bounce(attachments: Sequence[Attachment]) -> Bounce | None:
    """Read the first delivery status notification among the attachments (RFC 3464)."""
    report = next((one for one in attachments if one.content_type in _STATUS), None)
    if report is None:
        return None
    message_fields, *recipient_fields = [*_field_groups(report.content)] or [{}]
    recipients = [status for values in recipient_fields[: limits.REPORTED] if (status := _recipient_status(values))]
    return Bounce(_without_type(message_fields, "reporting-mta"), tuple(recipients))


def parse_abuse_report(attachments: Sequence[Attachment]) -> AbuseReport | None:
    """Read the first abuse report among the attachments (RFC 5965)."""
    report = next((one for one in attachments if one.content_type == _FEEDBACK), None)
    if report is None:
        return None
    values = next(_field_groups(report.content), {})
    return AbuseReport(
        feedback_type=(_first(values, "feedback-type") or "other").lower(),
        user_agent=_first(values, "user-agent"),
        source_ip=_first(values, "source-ip"),
        mail_from=_address(_first(values, "original-mail-from")),
        rcpt_to=tuple(filter(None, map(_address, values.get("original-rcpt-to", ())[: limits.REPORTED]))),
        reported_domains=tuple(values.get("reported-domain", ())[: limits.REPORTED]),
    )


def parse_calendars(attachments: Sequence[Attachment]) -> tuple[Calendar, ...]:
    """Return the calendar parts as text, each with its METHOD."""
    return tuple(_calendar(one) for one in attachments if one.content_type == _CALENDAR)


def _calendar(attachment: Attachment) -> Calendar:
    unused = Defects()
    decoded = charsets.decode(attachment.content[: limits.CALENDAR_BYTES], "utf-8", unused)
    text = headers.clean(decoded.replace("\r\n", "\n").replace("\r", "\n"), unused)
    method = _METHOD.search(text)
    return Calendar(attachment.position, method[1].upper() if method else None, text)


def _field_groups(content: bytes) -> Iterator[Values]:
    """Yield the groups of fields, which empty lines separate; the first group is about the whole message."""
    unused = Defects()
    lines = content[: limits.REPORT_BYTES].replace(b"\r\n", b"\n").strip(b"\n")
    for group in _GROUPS.split(lines, limits.REPORTED):
        header = headers.scan(group, unused)
        yield headers.group_by_name(headers.decode_fields(header, unused))


def _recipient_status(values: Values) -> RecipientStatus | None:
    recipient = _without_type(values, "original-recipient") or _without_type(values, "final-recipient")
    if not recipient:
        return None
    return RecipientStatus(
        recipient=recipient,
        action=(_first(values, "action") or "").lower(),
        status=(_first(values, "status") or "").partition(" ")[0],
        diagnostic=_without_type(values, "diagnostic-code"),
    )


def _first(values: Values, name: str) -> str | None:
    return next(iter(values.get(name, ())), None) or None


def _without_type(values: Values, name: str) -> str | None:
    """Return the first value without its type: `rfc822; ann@example.com`, `dns; mx.example.com`, `smtp; 550 …`."""
    value = _first(values, name)
    return value.partition(";")[2].strip() or value if value else None


def _address(value: str | None) -> str | None:
    return value.strip().strip("<>") if value else None
