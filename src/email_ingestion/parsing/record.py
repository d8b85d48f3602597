"""Make the record of a message from its raw bytes.

raw ─▶ headers (fields, in order) ─▶ addresses, date, message ids, sender_headers (list, automatic mail, authentication)
 └───▶ structure (rust_parser, else stdlib_parser) ─▶ content (text, HTML, attachments) ─▶ reports, nested messages
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import islice
from typing import Final

from email_ingestion.parsing import addresses, dates, headers, limits, reports, sender_headers, structure, text
from email_ingestion.parsing.content import read_content
from email_ingestion.parsing.defects import Defect, Defects
from email_ingestion.parsing.headers import Header
from email_ingestion.parsing.part import MESSAGES
from email_ingestion.records import Address, Attachment, Email, Envelope, NestedMessage

_MESSAGE_ID: Final = re.compile(r"<[^<>]{1,998}>")


def parse(envelope: Envelope, raw: bytes) -> Email:
    """Make the record of a message; a message that cannot be parsed has its envelope and one defect only."""
    try:
        return _parse(envelope, raw, Defects())
    except Exception:  # noqa: BLE001 - a fault of ours or of a library must not make one message stop all others
        return _empty_record(envelope)


def parse_headers(envelope: Envelope, raw: bytes) -> Email:
    """Make a record from the header fields alone; a header that cannot be parsed gives an empty one."""
    try:
        return _parse_headers(envelope, raw)
    except Exception:  # noqa: BLE001 - as above
        return _empty_record(envelope)


def parse_date(raw: bytes) -> datetime | None:
    """Return the Date field in UTC, None where there is none that can be read."""
    unused = Defects()
    try:
        header = headers.scan(_normalize_line_ends(raw[: limits.HEADER_BYTES], unused), unused)
        return dates.parse([headers.decode_value(each, header.codec, unused) for each in header.values["date"]], unused)
    except Exception:  # noqa: BLE001 - as above
        return None


def addresses_of(raw: bytes, fields: Collection[str]) -> tuple[str, ...]:
    """Return the addresses in header fields; none of a header that cannot be parsed."""
    unused = Defects()
    try:
        header = headers.scan(_normalize_line_ends(raw[: limits.HEADER_BYTES], unused), unused)
        return tuple(each.addr for name in fields for each in _addresses(header, name, unused))
    except Exception:  # noqa: BLE001 - as above
        return ()


def _parse_headers(envelope: Envelope, raw: bytes) -> Email:
    unused = Defects()
    header = headers.scan(_normalize_line_ends(raw[: limits.HEADER_BYTES], unused), unused)
    values = headers.group_by_name(headers.decode_fields(header, unused))
    return replace(
        _empty_record(envelope),
        subject=_first(values["subject"]) or "",
        from_=_choose_sender(_addresses(header, "from", unused)),
        mailing_list=sender_headers.parse_mailing_list(values),
        auto_submitted=sender_headers.parse_auto_submitted(values),
        auto_reply=sender_headers.is_auto_reply(values),
        verdicts=sender_headers.parse_authentication_results(values) if envelope.gm_msgid is not None else None,
        priority=sender_headers.parse_priority(values),
    )


def _parse(envelope: Envelope, raw: bytes, defects: Defects) -> Email:
    raw = _normalize_line_ends(raw, defects)
    header = headers.scan(raw, defects)
    content = read_content(structure.read(raw, header, defects), defects)
    fields = headers.decode_fields(header, defects)
    values = headers.group_by_name(fields)
    senders = _addresses(header, "from", defects)
    if not senders:
        defects.note(Defect.FROM_MISSING)
    return Email(
        envelope=envelope,
        message_id=_first(_message_ids(values["message-id"])),
        subject=_first(values["subject"]) or "",
        from_=_choose_sender(senders),
        to=_addresses(header, "to", defects),
        cc=_addresses(header, "cc", defects),
        bcc=_addresses(header, "bcc", defects),
        reply_to=_addresses(header, "reply-to", defects),
        date=dates.parse(values["date"], defects),
        in_reply_to=_first(_message_ids(values["in-reply-to"])),
        references=tuple(_message_ids(values["references"])),
        text=content.text,
        html=content.html,
        headers=fields,
        attachments=content.attachments,
        defects=defects.codes(),
        sender=next(iter(_addresses(header, "sender", defects)), None),
        mailing_list=sender_headers.parse_mailing_list(values),
        auto_submitted=sender_headers.parse_auto_submitted(values),
        auto_reply=sender_headers.is_auto_reply(values),
        bounce=reports.parse_bounce(content.attachments, values, content.text),
        abuse_report=reports.parse_abuse_report(content.attachments),
        calendar=reports.parse_calendars(content.attachments, content.charsets),
        enclosed=tuple(_NestedMessages().parse_all(content.attachments)),
        # Only a server with X-GM-EXT-1 is Gmail; another one leaves in place what a sender wrote.
        verdicts=sender_headers.parse_authentication_results(values) if envelope.gm_msgid is not None else None,
        priority=sender_headers.parse_priority(values),
    )


def _normalize_line_ends(raw: bytes, defects: Defects) -> bytes:
    """Make lines end in LF or CR LF where all end in CR alone, or those of the header in CR CR LF."""
    first = raw.find(b"\n")
    if first < 0 and b"\r" in raw:
        defects.note(Defect.LINE_BARE_CR)
        return raw.replace(b"\r", b"\n")
    if first > 1 and raw.startswith(b"\r\r", first - 2):
        defects.note(Defect.LINE_BARE_CR)
        return raw.replace(b"\r\r\n", b"\r\n")
    return raw


class _NestedMessages:
    """Parses the messages inside one message, all of them within one budget.

    Their defects are not defects of this message, and a message beyond the budget is still an attachment.
    """

    def __init__(self) -> None:
        self._messages = limits.ENCLOSED_MESSAGES
        self._bytes = limits.ENCLOSED_BYTES
        self._html = text.HtmlReader(Defects())

    def parse_all(self, attachments: Sequence[Attachment], depth: int = 1) -> Iterator[NestedMessage]:
        for one in attachments:
            if one.content_type in MESSAGES and self._messages > 0 and one.size <= self._bytes:
                self._messages -= 1
                self._bytes -= one.size
                yield self._parse_one(one.position, one.content, depth)

    def _parse_one(self, position: int, raw: bytes, depth: int) -> NestedMessage:
        unused = Defects()
        raw = _normalize_line_ends(raw, unused)
        header = headers.scan(raw, unused)
        content = read_content(structure.read(raw, header, unused), unused, self._html)
        wanted = ("subject", "message-id", "date")
        values = {
            name: [headers.decode_value(value, header.codec, unused) for value in header.values[name]]
            for name in wanted
        }
        return NestedMessage(
            position=position,
            message_id=_first(_message_ids(values["message-id"])),
            subject=_first(values["subject"]) or "",
            from_=_choose_sender(_addresses(header, "from", unused)),
            to=_addresses(header, "to", unused),
            cc=_addresses(header, "cc", unused),
            date=dates.parse(values["date"], unused),
            text=content.text,
            filenames=tuple(one.filename or "" for one in content.attachments),
            enclosed=tuple(self.parse_all(content.attachments, depth + 1)) if depth < limits.ENCLOSED_DEPTH else (),
        )


def _choose_sender(senders: tuple[Address, ...]) -> Address | None:
    """Return the first that has an address, else the first."""
    return next((one for one in senders if "@" in one.addr), senders[0] if senders else None)


def _addresses(header: Header, name: str, defects: Defects) -> tuple[Address, ...]:
    return addresses.parse([headers.decode_raw(value, header.codec, defects) for value in header.values[name]], defects)


def _message_ids(values: list[str]) -> list[str]:
    """Return the ids in the values; a value without angle brackets is one id.

    White space in an id comes from folding, unless it stands in quotes.
    """
    found = (match[0] for value in values for match in _MESSAGE_ID.finditer(value))
    ids = [one if " " not in one or '"' in one else "".join(one.split()) for one in islice(found, limits.MESSAGE_IDS)]
    return ids or [value for value in values if value][:1]


def _first(values: list[str]) -> str | None:
    return values[0] if values else None


def _empty_record(envelope: Envelope) -> Email:
    nobody: tuple[Address, ...] = ()
    return Email(
        envelope=envelope,
        message_id=None,
        subject="",
        from_=None,
        to=nobody,
        cc=nobody,
        bcc=nobody,
        reply_to=nobody,
        date=None,
        in_reply_to=None,
        references=(),
        text="",
        html=None,
        headers=(),
        attachments=(),
        defects=(Defect.PARSE_FAILED.value,),
    )
