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


def bounce(attachments: Sequence[Attachment]) -> Bounce | None:
    """What the first delivery status among the attachments says."""
    status = next((one for one in attachments if one.content_type in _STATUS), None)
    if status is None:
        return None
    of_message, *of_recipients = [*_groups(status.content)] or [{}]
    recipients = [told for values in of_recipients[: limits.REPORTED] if (told := _undelivered(values))]
    return Bounce(_typed(of_message, "reporting-mta"), tuple(recipients))


def abuse_report(attachments: Sequence[Attachment]) -> AbuseReport | None:
    """What the first complaint among the attachments says."""
    report = next((one for one in attachments if one.content_type == _FEEDBACK), None)
    if report is None:
        return None
    values = next(_groups(report.content), {})
    return AbuseReport(
        feedback_type=(_first(values, "feedback-type") or "other").lower(),
        user_agent=_first(values, "user-agent"),
        source_ip=_first(values, "source-ip"),
        mail_from=_address(_first(values, "original-mail-from")),
        rcpt_to=tuple(filter(None, map(_address, values.get("original-rcpt-to", ())[: limits.REPORTED]))),
        reported_domains=tuple(values.get("reported-domain", ())[: limits.REPORTED]),
    )


def calendars(attachments: Sequence[Attachment]) -> tuple[Calendar, ...]:
    """The calendar parts as text, with what each of them is about."""
    return tuple(_calendar(one) for one in attachments if one.content_type == _CALENDAR)


def _calendar(attachment: Attachment) -> Calendar:
    unused = Defects()
    decoded = charsets.decode(attachment.content[: limits.CALENDAR_BYTES], "utf-8", unused)
    text = headers.clean(decoded.replace("\r\n", "\n").replace("\r", "\n"), unused)
    method = _METHOD.search(text)
    return Calendar(attachment.position, method[1].upper() if method else None, text)


def _groups(content: bytes) -> Iterator[Values]:
    """The groups of fields that empty lines separate."""
    unused = Defects()
    lines = content[: limits.REPORT_BYTES].replace(b"\r\n", b"\n").strip(b"\n")
    for group in _GROUPS.split(lines, limits.REPORTED):
        header = headers.scan(group, unused)
        yield headers.by_name((name, headers.decoded(value, header.codec, unused)) for name, value in header.fields)


def _undelivered(values: Values) -> RecipientStatus | None:
    recipient = _typed(values, "original-recipient") or _typed(values, "final-recipient")
    if not recipient:
        return None
    return RecipientStatus(
        recipient=recipient,
        action=(_first(values, "action") or "").lower(),
        status=(_first(values, "status") or "").partition(" ")[0],
        diagnostic=_typed(values, "diagnostic-code"),
    )


def _first(values: Values, name: str) -> str | None:
    return next(iter(values.get(name, ())), None) or None


def _typed(values: Values, name: str) -> str | None:
    """The value without its type: `rfc822; ann@example.com`, `dns; mx.example.com`, `smtp; 550 …`."""
    value = _first(values, name)
    return value.partition(";")[2].strip() or value if value else None


def _address(value: str | None) -> str | None:
    return value.strip().strip("<>") if value else None
