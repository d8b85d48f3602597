"""Raw bytes to a record that people can use; where messages come from and go to is no business of this room.

raw ─▶ headers (fields, in order) ─▶ addresses, dates, message ids
 └───▶ structure (fast_tree, else second_opinion) ─▶ parts (text, html, attachments)
"""

from __future__ import annotations

import re
from itertools import islice
from typing import Final

from email_ingestion.email import Address, Email, Envelope
from email_ingestion.parsing import addresses, dates, headers, limits, parts, structure
from email_ingestion.parsing.defects import Defect, Defects
from email_ingestion.parsing.headers import Header

__all__ = ["Defect", "parse"]

_MESSAGE_ID: Final = re.compile(r"<[^<>]{1,998}>")


def parse(envelope: Envelope, raw: bytes) -> Email:
    """The record of any bytes; never raises, and what is wrong with them is listed in its `defects`.

    Message ids keep their angle brackets. Time and memory are bounded by `limits`.
    """
    defects = Defects()
    try:
        return _email(envelope, raw, defects)
    except Exception:  # noqa: BLE001 - a fault of ours or of a library must not make one message stop all others
        return _unreadable(envelope)


def _email(envelope: Envelope, raw: bytes, defects: Defects) -> Email:
    if b"\n" not in raw and b"\r" in raw:
        defects.note(Defect.LINE_BARE_CR)
        raw = raw.replace(b"\r", b"\n")
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
