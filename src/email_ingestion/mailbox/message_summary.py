"""What FETCH answers say of messages, as records."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import imapclient

_LABEL = re.compile(rb'"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<end>\))|(?P<atom>[^\s()"]+)')


@dataclass(frozen=True, slots=True)
class MessageSummary:
    """What is known of a message before its body is fetched."""

    uid: int
    size: int  # bytes, as the server states them
    internaldate: datetime  # aware, UTC
    flags: tuple[str, ...]
    labels: tuple[str, ...]
    gm_msgid: int | None
    gm_thrid: int | None


@dataclass(frozen=True, slots=True)
class LabelChange:
    """A message that changed, and the labels it has now."""

    uid: int
    gm_msgid: int
    labels: tuple[str, ...]
    modseq: int


def parse_summary(uid: int, data: dict[bytes, Any]) -> MessageSummary:
    """The outline in a FETCH answer."""
    return MessageSummary(
        uid=uid,
        size=int(data[b"RFC822.SIZE"]),
        internaldate=data[b"INTERNALDATE"].astimezone(UTC),
        flags=tuple(to_text(flag) for flag in data.get(b"FLAGS", ())),
        labels=_labels(data),
        gm_msgid=_number(data.get(b"X-GM-MSGID")),
        gm_thrid=_number(data.get(b"X-GM-THRID")),
    )


def parse_label_changes(found: dict[int, dict[bytes, Any]], first_uid: int) -> list[LabelChange]:
    """What answers to FETCH with CHANGEDSINCE (RFC 7162, section 3.1.4.1) say of UIDs from `low`, ascending.

    Answers about flags alone come unasked, and `n:*` always holds the last message.
    """
    whole = {b"X-GM-MSGID", b"X-GM-LABELS", b"MODSEQ"}
    return [
        LabelChange(uid, int(data[b"X-GM-MSGID"]), _labels(data), int(data[b"MODSEQ"][0]))
        for uid, data in sorted(found.items())
        if uid >= first_uid and whole <= data.keys()
    ]


def extract_bodies(found: dict[int, dict[bytes, Any]]) -> dict[int, bytes]:
    """The raw messages in FETCH answers."""
    return {uid: data[b"BODY[]"] or b"" for uid, data in found.items() if b"BODY[]" in data}


def split_labels(answer: bytes) -> tuple[bytes, ...]:
    """The labels in an unparsed FETCH answer."""
    listed = answer.partition(b"X-GM-LABELS (")[2]
    found = []
    for match in _LABEL.finditer(listed):
        if match["end"]:
            break
        found.append(re.sub(rb"\\(.)", rb"\1", match["quoted"]) if match["quoted"] is not None else match["atom"])
    return tuple(found)


def _labels(data: dict[bytes, Any]) -> tuple[str, ...]:
    return tuple(_label(label) for label in data.get(b"X-GM-LABELS", ()))


def _label(value: Any) -> str:
    """A label as a person reads it: numeric atoms come as int and NIL as None from the parser."""
    if value is None:
        return "NIL"
    if isinstance(value, int):
        return str(value)
    return str(imapclient.imap_utf7.decode(value)) if isinstance(value, bytes) else str(value)


def to_text(value: Any) -> str:
    """A flag or an attribute as text."""
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


def _number(value: Any) -> int | None:
    return None if value is None else int(value)
