"""Parts written for machines: delivery status (RFC 3464), abuse report (RFC 5965), calendar (RFC 5545).

`bounce_texts` reads reports of failed delivery that were written for people only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from email_ingestion.parsing import bounce_texts, charsets, headers, limits
from email_ingestion.parsing.defects import Defects
from email_ingestion.records import AbuseReport, Attachment, Bounce, Calendar, RecipientStatus

_STATUS: Final = frozenset({"message/delivery-status", "message/global-delivery-status"})
_FEEDBACK: Final = "message/feedback-report"
_CALENDARS: Final = frozenset({"text/calendar", "text/x-vcalendar", "application/ics"})
_GROUPS: Final = re.compile(rb"\n(?:[ \t]*\n)+")
_STATUS_CODE: Final = re.compile(r"\b[245]\.[0-9]{1,3}\.[0-9]{1,3}\b")
_WORD: Final = re.compile(r"[a-z-]*")
_METHOD: Final = re.compile(r"^METHOD(?:;[^:\n]{0,200})?:[ \t]*([A-Za-z-]{1,40})", re.MULTILINE)

Values = Mapping[str, list[str]]


def parse_bounce(attachments: Sequence[Attachment], values: Values, text: str) -> Bounce | None:
    """Read the first delivery status notification among the attachments (RFC 3464), else the text of a report.

    X-Failed-Recipients, which Exim and Gmail write, gives the recipients that the report does not.
    """
    report = next((one for one in attachments if one.content_type in _STATUS), None)
    if report is None:
        return bounce_texts.parse_bounce(values, text)
    groups = [*_field_groups(report.content)] or [{}]
    recipients = [status for group in groups[: limits.REPORTED + 1] if (status := _recipient_status(group))]
    if not recipients:
        recipients = bounce_texts.failed_recipients(values, text)
    return Bounce(_without_type(groups[0], "reporting-mta"), tuple(recipients[: limits.REPORTED]))


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


def parse_calendars(attachments: Sequence[Attachment], declared: Mapping[int, str]) -> tuple[Calendar, ...]:
    """Return the calendar parts as text, each with its METHOD; `declared` has their charsets by position."""
    return tuple(_calendar(one, declared.get(one.position)) for one in attachments if one.content_type in _CALENDARS)


def _calendar(attachment: Attachment, charset: str | None) -> Calendar:
    unused = Defects()
    content = attachment.content[: limits.CALENDAR_BYTES]
    decoded = charsets.decode(content, charset or "utf-8", unused)  # RFC 5545, section 3.1.4
    text = headers.clean(decoded.replace("\r\n", "\n").replace("\r", "\n"), unused)
    method = _METHOD.search(text)
    return Calendar(attachment.position, method[1].upper() if method else None, text)


def _field_groups(content: bytes) -> Iterator[Values]:
    """Yield the groups of fields, which empty lines separate; the first one should be about the whole message."""
    unused = Defects()
    lines = content[: limits.REPORT_BYTES].replace(b"\r\n", b"\n").strip(b"\n")
    for group in _GROUPS.split(lines, limits.REPORTED):
        header = headers.scan(group, unused)
        yield headers.group_by_name(headers.decode_fields(header, unused))


def _recipient_status(values: Values) -> RecipientStatus | None:
    recipient = _recipient(values, "original-recipient") or _recipient(values, "final-recipient")
    if not recipient:
        return None
    status = _STATUS_CODE.search(_first(values, "status") or "")
    return RecipientStatus(
        recipient=recipient,
        action=_WORD.match((_first(values, "action") or "").lower())[0],  # type: ignore[index]
        status=status[0] if status else (_first(values, "status") or "").partition(" ")[0],
        diagnostic=_without_type(values, "diagnostic-code"),
    )


def _recipient(values: Values, name: str) -> str:
    """Return an address without its type and without the brackets that some servers put around it."""
    return (_without_type(values, name) or "").strip("<>;, \t")


def _first(values: Values, name: str) -> str | None:
    return next(iter(values.get(name, ())), None) or None


def _without_type(values: Values, name: str) -> str | None:
    """Return the first value without its type: `rfc822; ann@example.com`, `dns; mx.example.com`, `smtp; 550 …`."""
    value = _first(values, name)
    return value.partition(";")[2].strip() or value if value else None


def _address(value: str | None) -> str | None:
    return value.strip().strip("<>") if value else None
