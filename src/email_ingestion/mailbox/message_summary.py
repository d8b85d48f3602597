"""Records made from parsed FETCH responses: a message without its body, and a change of labels."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import imapclient

_LABEL = re.compile(rb'"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<end>\))|(?P<atom>[^\s()"]+)')


@dataclass(frozen=True, slots=True)
class MessageSummary:
    """A message before its body is fetched; `labels`, `gm_msgid` and `gm_thrid` come from Gmail only."""

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
    """Make the summary of one message from its FETCH data."""
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
    """Return the label changes in the data of a FETCH with CHANGEDSINCE (RFC 7162, section 3.1.4.1), ascending by UID.

    Data without labels is left out, for servers send changed flags unasked; so are UIDs below `first_uid`, for `n:*`
    always holds the last message.
    """
    required = {b"X-GM-MSGID", b"X-GM-LABELS", b"MODSEQ"}
    return [
        LabelChange(uid, int(data[b"X-GM-MSGID"]), _labels(data), int(data[b"MODSEQ"][0]))
        for uid, data in sorted(found.items())
        if uid >= first_uid and required <= data.keys()
    ]


def extract_bodies(found: dict[int, dict[bytes, Any]]) -> dict[int, bytes]:
    """Return the raw messages in FETCH data, by UID."""
    return {uid: data[b"BODY[]"] or b"" for uid, data in found.items() if b"BODY[]" in data}


def split_labels(response: bytes) -> tuple[bytes, ...]:
    """Return the labels in an unparsed FETCH response, for those that imapclient cannot parse."""
    items = response.partition(b"X-GM-LABELS (")[2]
    found = []
    for match in _LABEL.finditer(items):
        if match["end"]:
            break
        found.append(re.sub(rb"\\(.)", rb"\1", match["quoted"]) if match["quoted"] is not None else match["atom"])
    return tuple(found)


def _labels(data: dict[bytes, Any]) -> tuple[str, ...]:
    return tuple(_label(label) for label in data.get(b"X-GM-LABELS", ()))


def _label(value: Any) -> str:
    """Return a label as Gmail shows it: the parser makes an int of a numeric atom, and None of NIL."""
    if value is None:
        return "NIL"
    if isinstance(value, int):
        return str(value)
    return str(imapclient.imap_utf7.decode(value)) if isinstance(value, bytes) else str(value)


def to_text(value: Any) -> str:
    """Return a flag, an attribute or a status text as str."""
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


def _number(value: Any) -> int | None:
    return None if value is None else int(value)
