r"""Reads an mbox file as Google Takeout writes it, message by message, with the labels and ids that Takeout adds.

    From <X-GM-MSGID>@xxx Mon Jan 01 00:00:00 +0000 2024     the date is the INTERNALDATE
    X-GM-THRID: <X-GM-THRID>
    X-Gmail-Labels: Inbox,Important,"a, b"                   RFC 2047; Unread and SelectedMailbox among them

These fields are Takeout's, so they are taken off again. A line `>From ` of a body is `From ` (mboxrd). One message is
in memory at a time.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import BinaryIO

from email_ingestion.parsing.defects import Defects
from email_ingestion.parsing.encoded_words import decode_words
from email_ingestion.records import ARRIVAL_YEARS

MAX_MESSAGE_BYTES = 100 * 1024 * 1024  # bytes; Gmail takes and sends half of it
MAX_LABELS = 100_000  # characters of all labels together; a field of the csv library has 131,072 at most
MAX_FIELDS = 16  # of Takeout at the head of a message; it writes three
MAX_ID = 2**64 - 1
MAX_LINE_BYTES = 64 * 1024  # bytes read at once, for a file of one line must not be read whole

SEPARATOR = re.compile(
    rb"From (?P<sender>\S+) +(?P<date>\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d(?: (?P<zone>[+-]\d{4}))? \d{4})\r?\n"
)
QUOTED = re.compile(rb">+From ")
TAKEOUT_FIELD = re.compile(rb"(X-GM-MSGID|X-GM-THRID|X-Gmail-Labels):[ \t]*(.*)", re.IGNORECASE | re.DOTALL)
TAKEOUT_ID = re.compile(rb"(\d{10,20})@xxx")

SYSTEM = {
    "inbox": "\\Inbox",
    "sent": "\\Sent",
    "important": "\\Important",
    "starred": "\\Starred",
    "drafts": "\\Draft",
    "draft": "\\Draft",
}
STATES = {"archived", "opened", "unread"}  # no labels: where it is not, and whether it was read


@dataclass(frozen=True, slots=True)
class MboxMessage:
    """One message of the file; `raw` is None where it is larger than `MAX_MESSAGE_BYTES`."""

    start: int  # byte offset of its first line in the file
    end: int  # and of the next message's
    raw: bytes | None
    gm_msgid: int | None
    gm_thrid: int | None
    labels: tuple[str, ...]
    flags: tuple[str, ...]
    internaldate: datetime | None  # aware, UTC


def read_mbox(file: BinaryIO, start: int) -> Iterator[MboxMessage]:
    """Yield the messages from the byte offset `start` on, which must be the offset of a message.

    A file that is no mbox yields nothing.
    """
    file.seek(start)
    separator = SEPARATOR.fullmatch(file.readline(MAX_LINE_BYTES))
    while separator:
        body = _Body()
        following = None
        while line := file.readline(MAX_LINE_BYTES):
            following = SEPARATOR.fullmatch(line) if body.blank and line.startswith(b"From ") else None
            if following:
                break
            body.add(line)
        end = file.tell() - (len(following[0]) if following else 0)
        yield _mbox_message(start, end, separator, body)
        start, separator = end, following


class _Body:
    """Gathers the lines of one message, with the line ends of the wire."""

    def __init__(self) -> None:
        self.blank = True  # the last line was empty: only after an empty line the next message begins
        self._content = bytearray()
        self._whole_line = True
        self._size = 0

    def add(self, line: bytes) -> None:
        starts_line, self._whole_line = self._whole_line, line.endswith(b"\n")
        if starts_line and QUOTED.match(line):
            line = line[1:]
        if self._whole_line:
            line = line[: -2 if line.endswith(b"\r\n") else -1] + b"\r\n"
        self.blank = starts_line and line == b"\r\n"
        self._size += len(line)
        if self._size <= MAX_MESSAGE_BYTES:
            self._content += line

    def bytes(self) -> bytearray | None:
        """Return the message without the empty line that an mbox adds; None where it is too large."""
        if self._size > MAX_MESSAGE_BYTES:
            return None
        if self._content.endswith(b"\r\n\r\n") or self._content == b"\r\n":
            del self._content[-2:]
        return self._content


def _mbox_message(start: int, end: int, separator: re.Match[bytes], body: _Body) -> MboxMessage:
    content = body.bytes()
    fields, size = _own_fields(content or bytearray())
    date = _date(separator) or _date_field(content or bytearray())
    labels, flags = _labels(fields.get("x-gmail-labels", b""))
    return MboxMessage(
        start=start,
        end=end,
        raw=None if content is None else bytes(memoryview(content)[size:]),
        gm_msgid=_number(fields.get("x-gm-msgid")) or _id_of(separator, date),
        gm_thrid=_number(fields.get("x-gm-thrid")),
        labels=labels,
        flags=flags,
        internaldate=date,
    )


def _own_fields(content: bytearray) -> tuple[dict[str, bytes], int]:
    """Return Takeout's own fields, which stand before all others, and their length."""
    fields: dict[str, bytes] = {}
    position = 0
    for _ in range(MAX_FIELDS):
        field = _field(content, position)
        match = TAKEOUT_FIELD.fullmatch(field)
        if match is None:
            break
        fields[match[1].decode().lower()] = match[2]
        position += len(field)
    return fields, position


def _field(content: bytearray, start: int) -> bytes:
    """Return the header field at `start` with its folded lines."""
    end = start
    while True:
        end = content.find(b"\n", end) + 1 or len(content)
        if end >= len(content) or content[end] not in b" \t":
            return bytes(content[start:end])


def _labels(value: bytes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return labels as IMAP names them, and flags. Takeout translates system labels: only English is known."""
    unfolded = re.sub(r"\r?\n[ \t]", " ", value[: 4 * MAX_LABELS].decode("utf-8", "replace")).strip()
    text = re.sub(r"[\0\r\n]", " ", decode_words(unfolded, Defects())[:MAX_LABELS])
    named = [name.strip() for name in next(csv.reader([text], skipinitialspace=True), []) if name.strip()]
    states = {name.casefold() for name in named}
    labels = tuple(SYSTEM.get(name.casefold(), name) for name in named if name.casefold() not in STATES)
    flags = ["\\Seen"] if "unread" not in states and named else []
    return labels, tuple(flags + ["\\Flagged"] * ("starred" in states))


def _id_of(separator: re.Match[bytes], date: datetime | None) -> int | None:
    """Return the X-GM-MSGID of the first line, if it is one: its upper bits are the INTERNALDATE in milliseconds."""
    match = TAKEOUT_ID.fullmatch(separator["sender"])
    if not match or not date:
        return None
    found = int(match[1])
    return found if (found >> 20) // 1000 == int(date.timestamp()) else None


def _date(separator: re.Match[bytes]) -> datetime | None:
    text = " ".join(separator["date"].decode("ascii", "replace").split())
    try:
        if separator["zone"]:
            return _plausible(datetime.strptime(text, "%a %b %d %H:%M:%S %z %Y"))
        return _plausible(datetime.strptime(text, "%a %b %d %H:%M:%S %Y").replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        return None


def _plausible(date: datetime) -> datetime | None:
    """Return a date in UTC; None for one at which no mail can have arrived. Raises OverflowError."""
    return date.astimezone(UTC) if ARRIVAL_YEARS[0] < date.year < ARRIVAL_YEARS[1] else None


def _date_field(content: bytearray) -> datetime | None:
    head = bytes(content[:MAX_LINE_BYTES]).partition(b"\r\n\r\n")[0]
    match = re.search(rb"^Date:(.*)$", head, re.IGNORECASE | re.MULTILINE)
    try:
        date = parsedate_to_datetime(match[1].decode("ascii", "replace").strip()) if match else None
        return _plausible(date if date.tzinfo else date.replace(tzinfo=UTC)) if date else None
    except (ValueError, OverflowError):
        return None


def _number(text: bytes | None) -> int | None:
    found = re.fullmatch(rb"\s*(\d{1,20})\s*", text) if text else None
    return int(found[1]) if found and int(found[1]) <= MAX_ID else None
