"""Split the header of a message into fields in order and decode their values; their meaning is read elsewhere."""

from __future__ import annotations

import codecs
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from email_ingestion.parsing import charsets, limits
from email_ingestion.parsing.defects import Defect, Defects
from email_ingestion.parsing.encoded_words import decode_words, quote_raw_bytes

# RFC 5322, section 2.2, with white space before the colon (4.5.8) and any byte above 127 in the name; the value runs
# over the lines that begin with white space. Possessive, so that no input makes it go back.
_FIELD: Final = re.compile(rb"([^\x00-\x20:\x7f]++)[ \t]*+:[ \t]*+([^\n]*+(?:\n[ \t][^\n]*+)*+)(?:\n|\Z)")
_LINE: Final = re.compile(rb"[^\n]*+(?:\n|\Z)")
_NAME: Final = re.compile(rb"([^\x00-\x20:\x7f]++)[ \t]*+:")
# A parameter that should have been folded, and begins at the margin: "Content-Type: multipart/mixed;", "boundary=x".
_PARAMETER_LINE: Final = re.compile(rb"[\w*.-]{1,60}[ \t]*=[^\n]*+(?:\n[ \t][^\n]*+)*+(?:\n|\Z)")
_EMPTY_LINE: Final = re.compile(rb"\r*\n")
_FROM_FIELD: Final = re.compile(rb">?From[ \t]*:")
_BLANK_LINES: Final = re.compile(rb"(?:[ \t]*\r*\n){1,20}")
_END: Final = re.compile(rb"\n\r*\n")
_FOLD: Final = re.compile(rb"\n[ \t\n]+")
# Everything str.splitlines() breaks at, and the other controls but the tab.
_LINE_BREAKS: Final = re.compile("[\x01-\x08\x0a-\x1f\x7f\x85\u2028\u2029]+")
_KNOWN_PREFIXES: Final = (b"x-", b"content-", b"list-", b"resent-", b"arc-", b"received-", b"original-", b"reported-")
_KNOWN: Final = frozenset(
    b"received return-path delivered-to from to cc bcc subject date message-id mime-version reply-to sender references "
    b"in-reply-to dkim-signature domainkey-signature authentication-results auto-submitted importance priority "
    b"precedence organization user-agent errors-to envelope-to thread-topic thread-index feedback-id "
    b"disposition-notification-to return-receipt-to apparently-to status action final-recipient diagnostic-code "
    b"remote-mta reporting-mta dsn-gateway received-from-mta arrival-date last-attempt-date will-retry-until "
    b"final-log-id feedback-type source-ip version".split()
)
_T = TypeVar("_T")
_COMMENT_OR_QUOTED: Final = re.compile(r'("(?:[^"\\]|\\.)*+"?)|\((?:[^()\\]|\\.)*+\)', re.DOTALL)
_MAX_COMMENT_DEPTH: Final = 5
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
    fields, body = _Scanner(raw, len(raw), defects).scan(_skip_blank_lines(raw, _skip_envelope_line(raw), defects))
    non_ascii = b" ".join(value for _, value in fields if not value.isascii())
    codec = charsets.header_codec(non_ascii, raw) if non_ascii else None
    return Header(tuple(fields), body, codec, group_by_name(fields))


def scan_part(raw: bytes, start: int, end: int, defects: Defects) -> tuple[list[Field], int]:
    """Return the fields of the part between two offsets and where its body begins.

    Without an empty line between them, the body begins at the first line that is not a field of a part.
    """
    if empty := _EMPTY_LINE.match(raw, start, end):
        return [], empty.end()
    fields, body = _Scanner(raw, end, defects, in_part=True).scan(start)
    if body == end and not all(_is_known(name.encode("latin-1")) for name, _ in fields):
        fields, body = _Scanner(raw, end, defects, in_part=True, known_only=True).scan(start)
    return fields, body


class _Scanner:
    """Reads one header up to the offset `end`."""

    def __init__(
        self, raw: bytes, end: int, defects: Defects, *, in_part: bool = False, known_only: bool = False
    ) -> None:
        self._raw = raw
        self._end = end
        self._defects = defects
        self._in_part = in_part
        self._known_only = known_only

    def scan(self, start: int) -> tuple[list[Field], int]:
        """Return the fields from `start` on and where the body begins."""
        raw, end = self._raw, self._end
        fields: list[Field] = []
        position = start
        while position < end:
            if len(fields) >= limits.HEADER_FIELDS or position - start >= limits.HEADER_BYTES:
                self._defects.note(Defect.HEADER_TRUNCATED)
                empty = _END.search(raw, position - 1, end)
                return fields, empty.end() if empty else end
            match = _FIELD.match(raw, position, end)
            if (match is None or b"=" in match[1]) and (parameter := self._match_parameter(position, fields)):
                name, value = fields.pop()
                fields.append((name, value + b" " + unfold(parameter[0])))
                self._defects.note(Defect.HEADER_INVALID)
                position = parameter.end()
                continue
            if match and not (self._known_only and not _is_known(match[1])):
                if not match[1].isascii():
                    self._defects.note(Defect.HEADER_INVALID)
                fields.append((match[1].decode("latin-1"), _unfold_limited(match[2], self._defects)))
                position = match.end()
                continue
            if empty := _EMPTY_LINE.match(raw, position, end):
                return fields, empty.end()
            after = None if self._is_delimiter(position, fields) else self._skip_junk(position, start)
            if after is None:
                missing = not fields and not self._in_part
                self._defects.note(Defect.HEADER_MISSING if missing else Defect.HEADER_SEPARATOR)
                return fields, position
            self._defects.note(Defect.HEADER_INVALID)
            position = after
        return fields, end

    def _match_parameter(self, position: int, fields: list[Field]) -> re.Match[bytes] | None:
        """Match a parameter at the margin of its line, which belongs to the field above it."""
        value = fields[-1][1] if fields else b""
        if not value.endswith(b";") or len(value) > limits.PARAMETER_CHARS:
            return None
        return _PARAMETER_LINE.match(self._raw, position, self._end)

    def _is_delimiter(self, position: int, fields: list[Field]) -> bool:
        """Tell whether the line is "--" and the boundary that a field above it declares."""
        if not self._raw.startswith(b"--", position):
            return False
        line = _LINE.match(self._raw, position, self._end)
        boundary = line[0][2:].strip() if line else b""
        return bool(boundary) and any(
            name.lower() == "content-type" and boundary in value for name, value in reversed(fields)
        )

    def _skip_junk(self, position: int, start: int) -> int | None:
        """Return the offset behind lines that are not fields, if the header goes on there; None when the body begins.

        Behind one line any field will do, behind several only one that is known: prose has lines like "Note: …", too.
        """
        raw, end = self._raw, self._end
        for count in range(1, limits.JUNK_LINES + 1):
            line = _LINE.match(raw, position, end)
            position = line.end() if line else end
            if position >= end or (line and count > 1 and len(line[0]) > limits.JUNK_CHARS):
                return None
            if _EMPTY_LINE.match(raw, position, end):
                return position if count == 1 and position > start and not self._at_start(start, line) else None
            if name := _NAME.match(raw, position, end):
                if _is_known(name[1]):
                    return position
                if count == 1 and not self._in_part and not raw.startswith(b"//", name.end()):
                    return position
        return None

    def _at_start(self, start: int, line: re.Match[bytes] | None) -> bool:
        """Tell whether the only line before an empty one is the first of all, or stands in a part: that is text."""
        return self._in_part or line is None or line.start() == start


def _skip_envelope_line(raw: bytes) -> int:
    """Return the offset behind a byte order mark and the "From " line that mbox files and some gateways write."""
    start = len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0
    if raw.startswith((b"From ", b">From "), start) and not _FROM_FIELD.match(raw, start):
        return _LINE.match(raw, start).end()  # type: ignore[union-attr]
    return start


def _skip_blank_lines(raw: bytes, start: int, defects: Defects) -> int:
    """Return the offset behind empty lines that stand before a header: two known fields must follow them."""
    blank = _BLANK_LINES.match(raw, start)
    first = _FIELD.match(raw, blank.end()) if blank else None
    second = _NAME.match(raw, first.end()) if first and _is_known(first[1]) else None
    if blank is None or second is None or not _is_known(second[1]):
        return start
    defects.note(Defect.HEADER_INVALID)
    return blank.end()


def _is_known(name: bytes) -> bool:
    """Tell whether a field of this name is to be expected in a header, and not in prose."""
    lower = name.rstrip().lower()
    return lower in _KNOWN or lower.startswith(_KNOWN_PREFIXES)


def _unfold_limited(value: bytes, defects: Defects) -> bytes:
    if len(value) > limits.HEADER_BYTES:
        defects.note(Defect.HEADER_TRUNCATED)
        value = value[: limits.HEADER_BYTES]
    unfolded = unfold(value)
    if b"\r" in unfolded or value.startswith(b"\r") or value.endswith(b"\r\r"):
        defects.note(Defect.LINE_BARE_CR)
    return unfolded


def unfold(value: bytes) -> bytes:
    """Join a folded value into one line (RFC 5322, section 2.2.3)."""
    return (_FOLD.sub(b" ", value.replace(b"\r\n", b"\n")) if b"\n" in value else value).strip()


def decode_raw(value: bytes, codec: str | None, defects: Defects) -> str:
    """Decode the bytes of a value but not its encoded words: structured fields are split before those are decoded."""
    if value.isascii():
        if b"\x1b" in value and (text := charsets.decode_iso_2022(value)) is not None:
            return text
        return value.decode("ascii")
    defects.note(Defect.HEADER_8BIT)
    if b"=?" in value:
        value = quote_raw_bytes(value)
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


def without_comments(value: str) -> str:
    """Remove comments (RFC 5322, section 3.2.2) outside quoted strings, a few levels deep."""
    for _ in range(_MAX_COMMENT_DEPTH):
        if "(" not in value:
            break
        value = _COMMENT_OR_QUOTED.sub(lambda match: match[1] or " ", value)
    return value


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
