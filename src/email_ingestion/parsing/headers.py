"""The header of a message or part: where it ends, its fields in order, their values as text; not what they mean."""

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
_BREAKS: Final = re.compile("[\x01-\x08\x0a-\x1f\x7f\x85\u2028\u2029]+")
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


def by_name(fields: Iterable[tuple[str, _T]]) -> Mapping[str, list[_T]]:
    """The values of all fields of one lower-case name, in order; an empty list for a name that is not there."""
    values: defaultdict[str, list[_T]] = defaultdict(list)
    for name, value in fields:
        values[name.lower()].append(value)
    return values


def scan(raw: bytes, defects: Defects) -> Header:
    """The header at the beginning of `raw`; what is no field is skipped, what follows the limits is not kept."""
    fields, body = _scan(raw, defects)
    foreign = b" ".join(value for _, value in fields if not value.isascii())
    codec = charsets.header_codec(foreign, raw) if foreign else None
    return Header(tuple(fields), body, codec, by_name(fields))


def _scan(raw: bytes, defects: Defects) -> tuple[list[Field], int]:
    fields: list[Field] = []
    position = _after_envelope_line(raw)
    while position < len(raw):
        if len(fields) >= limits.HEADER_FIELDS or position >= limits.HEADER_BYTES:
            defects.note(Defect.HEADER_TRUNCATED)
            end = _END.search(raw, position - 1)
            return fields, end.end() if end else len(raw)
        if match := _FIELD.match(raw, position):
            fields.append((match[1].decode("latin-1"), _unfolded(match[2], defects)))
            position = match.end()
            continue
        if empty := _EMPTY_LINE.match(raw, position):
            return fields, empty.end()
        after = _after_junk(raw, position)
        if after is None:
            defects.note(Defect.HEADER_SEPARATOR if fields else Defect.HEADER_MISSING)
            return fields, position
        defects.note(Defect.HEADER_INVALID)
        position = after
    return fields, len(raw)


def _after_envelope_line(raw: bytes) -> int:
    """Past the line that mbox files and some gateways put before the header."""
    return _LINE.match(raw).end() if raw.startswith((b"From ", b">From ")) else 0  # type: ignore[union-attr]


def _after_junk(raw: bytes, position: int) -> int | None:
    """Past one line that is no field, if the header goes on behind it; None when this is the body already."""
    line = _LINE.match(raw, position)
    after = line.end() if line else len(raw)
    goes_on = _FIELD.match(raw, after) or (position and _EMPTY_LINE.match(raw, after))
    return after if goes_on else None


def _unfolded(value: bytes, defects: Defects) -> bytes:
    if len(value) > limits.HEADER_BYTES:
        defects.note(Defect.HEADER_TRUNCATED)
        value = value[: limits.HEADER_BYTES]
    return unfold(value)


def unfold(value: bytes) -> bytes:
    """A value in one line (RFC 5322, section 2.2.3)."""
    return (_FOLD.sub(b" ", value.replace(b"\r\n", b"\n")) if b"\n" in value else value).strip()


def text(value: bytes, codec: str | None, defects: Defects) -> str:
    """A field's value as text, its encoded words untouched: structured fields are taken apart before decoding."""
    if value.isascii():
        return value.decode("ascii")
    defects.note(Defect.HEADER_8BIT)
    return charsets.in_header(value, codec, defects)


def decoded(value: bytes, codec: str | None, defects: Defects) -> str:
    """A field's value as a person reads it, in one line."""
    written = text(value, codec, defects)
    if "=?" not in written and written.isprintable():  # nearly all are
        return written.strip()
    return one_line(decode_words(written, defects), defects)


def one_line(value: str, defects: Defects) -> str:
    """The value without line breaks, controls, NUL and lone surrogates."""
    if value.isprintable():
        return value.strip()
    return clean(_BREAKS.sub(" ", value), defects).strip()


def clean(value: str, defects: Defects) -> str:
    """The value with U+FFFD for NUL and lone surrogates, which no database takes."""
    if _is_storable(value):
        return value
    defects.note(Defect.NUL)
    return _NOT_STORABLE.sub("\ufffd", value)


def _is_storable(value: str) -> bool:
    try:
        return b"\x00" not in value.encode()  # ten times as fast as a search of the text
    except UnicodeEncodeError:  # a lone surrogate
        return False
