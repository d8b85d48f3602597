"""How a record is made of raw bytes.

raw ─▶ headers (fields, in order) ─▶ addresses, dates, message ids, origin (list, machine, verdicts)
 └───▶ structure (fast_tree, else second_opinion) ─▶ parts (text, html, attachments) ─▶ reports, enclosed messages
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final

from email_ingestion.parsing import addresses, dates, headers, limits, origin, parts, reports, structure, text
from email_ingestion.parsing.defects import Defect, Defects
from email_ingestion.parsing.headers import Header
from email_ingestion.parsing.part import MESSAGES
from email_ingestion.records import Address, Attachment, Email, Envelope, NestedMessage

_MESSAGE_ID: Final = re.compile(r"<[^<>]{1,998}>")


def parse(envelope: Envelope, raw: bytes) -> Email:
    """See `parsing.parse`."""
    defects = Defects()
    try:
        return _email(envelope, raw, defects)
    except Exception:  # noqa: BLE001 - a fault of ours or of a library must not make one message stop all others
        return _unreadable(envelope)


def headline(envelope: Envelope, raw: bytes) -> Email:
    """See `parsing.headline`."""
    try:
        return _headline(envelope, raw)
    except Exception:  # noqa: BLE001 - as above
        return _unreadable(envelope)


def _headline(envelope: Envelope, raw: bytes) -> Email:
    unused = Defects()
    header = headers.scan(_with_newlines(raw[: limits.HEADER_BYTES], unused), unused)
    values = headers.by_name((name, headers.decoded(value, header.codec, unused)) for name, value in header.fields)
    return replace(
        _unreadable(envelope),
        subject=_first(values["subject"]) or "",
        from_=next(iter(_addresses(header, "from", unused)), None),
        mailing_list=origin.mailing_list(values),
        auto_submitted=origin.auto_submitted(values),
        auto_reply=origin.is_auto_reply(values),
        verdicts=origin.verdicts(values) if envelope.gm_msgid is not None else None,
        priority=origin.priority(values),
    )


def _email(envelope: Envelope, raw: bytes, defects: Defects) -> Email:
    raw = _with_newlines(raw, defects)
    header = headers.scan(raw, defects)
    content = parts.read(structure.read(raw, header, defects), defects)
    fields = tuple((name, headers.decoded(value, header.codec, defects)) for name, value in header.fields)
    values = headers.by_name(fields)
    senders = _addresses(header, "from", defects)
    if not senders:
        defects.note(Defect.FROM_MISSING)
    return Email(
        envelope=envelope,
        message_id=_first(_message_ids(values["message-id"])),
        subject=_first(values["subject"]) or "",
        from_=senders[0] if senders else None,
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
        mailing_list=origin.mailing_list(values),
        auto_submitted=origin.auto_submitted(values),
        auto_reply=origin.is_auto_reply(values),
        bounce=reports.bounce(content.attachments),
        abuse_report=reports.abuse_report(content.attachments),
        calendar=reports.calendars(content.attachments),
        enclosed=tuple(_Opener().opened(content.attachments)),
        # Only a server with X-GM-EXT-1 is Gmail; another one leaves in place what a sender wrote.
        verdicts=origin.verdicts(values) if envelope.gm_msgid is not None else None,
        priority=origin.priority(values),
    )


def _with_newlines(raw: bytes, defects: Defects) -> bytes:
    if b"\n" in raw or b"\r" not in raw:
        return raw
    defects.note(Defect.LINE_BARE_CR)
    return raw.replace(b"\r", b"\n")


class _Opener:
    """Opens the messages inside one message, all of them within one budget.

    What is wrong with them is not this message's defect, and what exceeds the budget is still an attachment.
    """

    def __init__(self) -> None:
        self._messages = limits.ENCLOSED_MESSAGES
        self._bytes = limits.ENCLOSED_BYTES
        self._html = text.HtmlReader(Defects())

    def opened(self, attachments: Sequence[Attachment], depth: int = 1) -> Iterator[NestedMessage]:
        for one in attachments:
            if one.content_type in MESSAGES and self._messages > 0 and one.size <= self._bytes:
                self._messages -= 1
                self._bytes -= one.size
                yield self._open(one.position, one.content, depth)

    def _open(self, position: int, raw: bytes, depth: int) -> NestedMessage:
        unused = Defects()
        raw = _with_newlines(raw, unused)
        header = headers.scan(raw, unused)
        content = parts.read(structure.read(raw, header, unused), unused, self._html)
        wanted = ("subject", "message-id", "date")
        values = {
            name: [headers.decoded(value, header.codec, unused) for value in header.values[name]] for name in wanted
        }
        return NestedMessage(
            position=position,
            message_id=_first(_message_ids(values["message-id"])),
            subject=_first(values["subject"]) or "",
            from_=next(iter(_addresses(header, "from", unused)), None),
            to=_addresses(header, "to", unused),
            cc=_addresses(header, "cc", unused),
            date=dates.parse(values["date"], unused),
            text=content.text,
            filenames=tuple(one.filename or "" for one in content.attachments),
            enclosed=tuple(self.opened(content.attachments, depth + 1)) if depth < limits.ENCLOSED_DEPTH else (),
        )


def _addresses(header: Header, name: str, defects: Defects) -> tuple[Address, ...]:
    return addresses.parse([headers.text(value, header.codec, defects) for value in header.values[name]], defects)


def _message_ids(values: list[str]) -> list[str]:
    """The ids of a field; one without angle brackets is taken as it stands."""
    found = (match[0] for value in values for match in _MESSAGE_ID.finditer(value))
    ids = list(islice(found, limits.MESSAGE_IDS))
    return ids or [value for value in values if value][:1]


def _first(values: list[str]) -> str | None:
    return values[0] if values else None


def _unreadable(envelope: Envelope) -> Email:
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
