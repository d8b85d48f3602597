"""Split the header of a message into fields in order and decode their values; their meaning is read elsewhere."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from email_ingestion.parsing import charsets, limits
from email_ingestion.parsing.defects import Defect, Defects
from email_ingestion.parsing.encoded_words import decode_words

# RFC 5322, section 2.2, with white space before the colon (4.5.8) and any byte above 127 in the name; the value runs
# over the lines that begin with white space. Possessive, so that no input makes it go back.
_FIELD: Final = re.compile(rb"([^\x00-\x20:\x7f]++)[ \t]*+:[ \t]*+([^\n]*+(?:\n[ \t][^\n]*+)*+)(?:\n|\Z)")
_LINE: Final = re.compile(rb"[^\n]*+(?:\n|\Z)")
_EMPTY_LINE: Final = re.compile(rb"\r?\n")
_END: Final = re.compile(rb"\n\r?\n")
_FOLD: Final = re.compile(rb"\n[ \t\n]+")
# Everything str.splitlines() breaks at, and the other controls but the tab.
_LINE_BREAKS: Final = re.compile("[\x01-\x08\x0a-\x1f\x7f\x85\u2028\u2029]+")
_T = TypeVar("_T")
_NOT_STORABLE: Final = re.compile("[\x00\ud800-\udfff]")


Field = tuple[str, bytes]  # the name as written, the value unfolded but not decoded


@dataclass(frozen=True, slots=True)
class Header:
    """The fields of a message and where its body begins."""

    fields: tuple[Field, ...]
    body: int  # offset in the raw message
    codec: str | None  # of its 8-bit bytes
    values: Mapping[str, list[bytes]]  # by lower-case name


def group_by_name(fields: Iterable[tuple[str, _T]]) -> Mapping[str, list[_T]]:
    """Group the values by lower-case field name, in order; an unknown name has an empty list."""
    values: defaultdict[str, list[_T]] = defaultdict(list)
    for name, value in fields:
        values[name.lower()].append(value)
    return values


def scan(raw: bytes, defects: Defects) -> Header:
    """Read the header at the beginning of `raw`; skip lines that are not fields, and stop keeping at the limits."""
    fields, body = _scan(raw, defects)
    non_ascii = b" ".join(value for _, value in fields if not value.isascii())
    codec = charsets.header_codec(non_ascii, raw) if non_ascii else None
    return Header(tuple(fields), body, codec, group_by_name(fields))


def _scan(raw: bytes, defects: Defects) -> tuple[list[Field], int]:
    fields: list[Field] = []
    position = _skip_envelope_line(raw)
    while position < len(raw):
        if len(fields) >= limits.HEADER_FIELDS or position >= limits.HEADER_BYTES:
            defects.note(Defect.HEADER_TRUNCATED)
            end = _END.search(raw, position - 1)
            return fields, end.end() if end else len(raw)
        if match := _FIELD.match(raw, position):
            fields.append((match[1].decode("latin-1"), _unfold_limited(match[2], defects)))
            position = match.end()
            continue
        if empty := _EMPTY_LINE.match(raw, position):
            return fields, empty.end()
        after = _skip_invalid_line(raw, position)
        if after is None:
            defects.note(Defect.HEADER_SEPARATOR if fields else Defect.HEADER_MISSING)
            return fields, position
        defects.note(Defect.HEADER_INVALID)
        position = after
    return fields, len(raw)


def _skip_envelope_line(raw: bytes) -> int:
    """Return the offset behind the "From " line that mbox files and some gateways put before the header."""
    return _LINE.match(raw).end() if raw.startswith((b"From ", b">From ")) else 0  # type: ignore[union-attr]


def _skip_invalid_line(raw: bytes, position: int) -> int | None:
    """Return the offset behind a line that is not a field, if the header goes on there; None when the body begins."""
    line = _LINE.match(raw, position)
    after = line.end() if line else len(raw)
    goes_on = _FIELD.match(raw, after) or (position and _EMPTY_LINE.match(raw, after))
    return after if goes_on else None


def _unfold_limited(value: bytes, defects: Defects) -> bytes:
    if len(value) > limits.HEADER_BYTES:
        defects.note(Defect.HEADER_TRUNCATED)
        value = value[: limits.HEADER_BYTES]
    return unfold(value)


def unfold(value: bytes) -> bytes:
    """Join a folded value into one line (RFC 5322, section 2.2.3)."""
    return (_FOLD.sub(b" ", value.replace(b"\r\n", b"\n")) if b"\n" in value else value).strip()


def decode_raw(value: bytes, codec: str | None, defects: Defects) -> str:
    """Decode the bytes of a value but not its encoded words: structured fields are split before those are decoded."""
    if value.isascii():
        return value.decode("ascii")
    defects.note(Defect.HEADER_8BIT)
    return charsets.decode_header(value, codec, defects)


def decode_value(value: bytes, codec: str | None, defects: Defects) -> str:
    """Decode a value, encoded words included, into one readable line."""
    written = decode_raw(value, codec, defects)
    if "=?" not in written and written.isprintable():  # nearly all are
        return written.strip()
    return one_line(decode_words(written, defects), defects)


def decode_fields(header: Header, defects: Defects) -> tuple[tuple[str, str], ...]:
    """Decode all fields of a header, in order."""
    return tuple((name, decode_value(value, header.codec, defects)) for name, value in header.fields)


def one_line(value: str, defects: Defects) -> str:
    """Replace line breaks and control characters by spaces, NUL and lone surrogates by U+FFFD."""
    if value.isprintable():
        return value.strip()
    return clean(_LINE_BREAKS.sub(" ", value), defects).strip()


def clean(value: str, defects: Defects) -> str:
    """Replace NUL and lone surrogates, which no database accepts, by U+FFFD."""
    if _is_storable(value):
        return value
    defects.note(Defect.NUL)
    return _NOT_STORABLE.sub("\ufffd", value)


def _is_storable(value: str) -> bool:
    try:
        return b"\x00" not in value.encode()  # ten times as fast as a search of the text
    except UnicodeEncodeError:  # a lone surrogate
        return False
