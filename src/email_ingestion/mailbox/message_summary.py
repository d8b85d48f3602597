"""Records made from parsed FETCH responses: a message without its body, and a change of labels and flags.

Servers send dates, sizes and flags that nobody can read (Domino: `"00-Jan-0000 00:00:00 +0000"`). Such a message is
taken with a fallback and a defect: it must hold up neither itself nor the mail behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from email_ingestion.mailbox.fetch_parser import SALVAGED_FLAGS
from email_ingestion.mailbox.mailbox_names import decode_name
from email_ingestion.records import ServerDefect

# Mail servers know no older mail: a year before stands for "no date". The last year has no room for a time zone.
FIRST_YEAR, LAST_YEAR = 1970, 9998
_NO_SIZES = {2**31 - 1, 2**32 - 1}


@dataclass(frozen=True, slots=True)
class MessageSummary:
    """A message before its body is fetched; `labels`, `gm_msgid` and `gm_thrid` come from Gmail only.

    What cannot be read is in `defects`: the size is 0 then, and the date the time of this reading.
    """

    uid: int
    size: int  # bytes, as the server states them
    internaldate: datetime  # aware, UTC
    flags: tuple[str, ...]
    labels: tuple[str, ...]
    gm_msgid: int | None
    gm_thrid: int | None
    defects: tuple[str, ...] = ()

    @property
    def announced(self) -> int | None:
        """Its size in bytes as the server states it, None where that cannot be read."""
        return None if self.defects and ServerDefect.SIZE in self.defects else self.size


@dataclass(frozen=True, slots=True)
class MarkChange:
    """A message that changed, and the labels (of Gmail) and flags it has now."""

    uid: int
    gm_msgid: int | None
    labels: tuple[str, ...] | None
    flags: tuple[str, ...]
    modseq: int


@dataclass(frozen=True, slots=True)
class MailboxChanges:
    """What a server says to have changed in a window of UIDs."""

    marks: list[MarkChange]
    vanished: list[tuple[int, int]]  # ranges of UIDs, ascending, that it says to be deleted, if it was asked
    is_whole: bool  # whether it sent everything


def parse_summary(uid: int, data: dict[bytes, Any]) -> MessageSummary:
    """Make the summary of one message from its FETCH data."""
    size, date = _size(data.get(b"RFC822.SIZE")), readable_date(data.get(b"INTERNALDATE"))
    return MessageSummary(
        uid=uid,
        size=size or 0,
        internaldate=date or datetime.now(UTC),
        flags=tuple(_word(flag) for flag in _items(data.get(b"FLAGS"))),
        labels=_labels(data),
        gm_msgid=_number(data.get(b"X-GM-MSGID")),
        gm_thrid=_number(data.get(b"X-GM-THRID")),
        defects=() if size is not None and date and SALVAGED_FLAGS not in data else _defects(size, date, data),
    )


def _defects(size: int | None, date: datetime | None, data: Mapping[bytes, Any]) -> tuple[str, ...]:
    unreadable = {
        ServerDefect.SIZE: size is None,
        ServerDefect.INTERNALDATE: date is None,
        ServerDefect.FLAGS: SALVAGED_FLAGS in data,
    }
    return tuple(defect.value for defect, true in unreadable.items() if true)


def is_summary(data: dict[bytes, Any]) -> bool:
    """Whether FETCH data answers the question for a summary; changed flags come unasked."""
    return b"RFC822.SIZE" in data or b"INTERNALDATE" in data


def readable_date(value: Any) -> datetime | None:
    """Return a date in UTC, or None where there is none that a message can have."""
    try:
        return value.astimezone(UTC) if FIRST_YEAR <= value.year <= LAST_YEAR else None
    except (AttributeError, OverflowError, ValueError):
        return None


def parse_mark_changes(found: dict[int, dict[bytes, Any]], first_uid: int, *, is_gmail: bool) -> list[MarkChange]:
    """Return the changes in the data of a FETCH with CHANGEDSINCE (RFC 7162, section 3.1.4.1), ascending by UID.

    Data without what was asked for is left out, for servers send changed flags unasked; so are UIDs below `first_uid`,
    for `n:*` always holds the last message.
    """
    changes = (_mark_change(uid, data, is_gmail=is_gmail) for uid, data in sorted(found.items()) if uid >= first_uid)
    return [change for change in changes if change]


def _mark_change(uid: int, data: Mapping[bytes, Any], *, is_gmail: bool) -> MarkChange | None:
    modseq, gm_msgid = _modseq(data.get(b"MODSEQ")), _number(data.get(b"X-GM-MSGID")) if is_gmail else None
    labels = data.get(b"X-GM-LABELS")
    if modseq is None or data.get(b"FLAGS") is None or (is_gmail and (gm_msgid is None or labels is None)):
        return None
    flags = tuple(_word(flag) for flag in _items(data[b"FLAGS"]))
    return MarkChange(uid, gm_msgid, _labels(data) if is_gmail else None, flags, modseq)


def _modseq(value: Any) -> int | None:
    """Return the number of `MODSEQ (7)`, None for anything else: some servers send -1, or nothing between."""
    number = _number(value[0] if isinstance(value, tuple) and value else value)
    return None if number is None or number < 0 else number


def as_body(value: Any) -> bytes | None:
    """Return the value of a BODY[] item: bytes, or None for NIL; a server may send digits without quotes."""
    return value if value is None or isinstance(value, bytes) else str(value).encode()


def parse_message_id(data: dict[bytes, Any]) -> str | None:
    """Return the text of the Message-ID field in the FETCH data of one message; None where it has none."""
    header = as_body(next((value for name, value in data.items() if name.upper().startswith(b"BODY[HEADER")), None))
    return (header or b"").partition(b":")[2].decode("utf-8", "replace").strip() or None


def _labels(data: Mapping[bytes, Any]) -> tuple[str, ...]:
    return tuple(_label(label) for label in _items(data.get(b"X-GM-LABELS")))


def _items(value: Any) -> tuple[Any, ...]:
    """Return the items of a list; a server may send NIL instead, or a single atom."""
    return value if isinstance(value, tuple) else () if value is None else (value,)


def _word(value: Any) -> str:
    return "NIL" if value is None else to_text(value)


def _label(value: Any) -> str:
    """Return a label as Gmail shows it: the parser makes an int of a numeric atom, and None of NIL."""
    if value is None:
        return "NIL"
    if isinstance(value, int):
        return str(value)
    return decode_name(value) if isinstance(value, bytes) else str(value)


def to_text(value: Any) -> str:
    """Return a flag, an attribute or a status text as str."""
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


def _number(value: Any) -> int | None:
    try:
        return None if value is None else int(value)
    except (TypeError, ValueError):
        return None


def _size(value: Any) -> int | None:
    """Return a size; None for one that stands for an unknown one: -1, also where the server counts without a sign."""
    size = _number(value)
    return None if size is None or size < 0 or size in _NO_SIZES or size >= 2**63 else size
