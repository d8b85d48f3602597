"""Split a message into its MIME parts (RFC 2045, RFC 2046), also a broken one; `content` decides which is the text.

    raw ── headers.scan ── own Content-Type ──▶ delimiters ──▶ header and body of every part ──▶ transfer ──▶ Part

It works with offsets into the raw message and takes time in proportion to its size times its depth. An outer
delimiter ends everything within it, so a part that was cut off takes nothing of the next one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Final, NamedTuple

from email_ingestion.parsing import charsets, headers, limits, transfer
from email_ingestion.parsing.defects import Defect, Defects
from email_ingestion.parsing.headers import Header
from email_ingestion.parsing.part import Part, describe

_CONTENT_FIELDS: Final = ("content-type", "content-transfer-encoding", "content-disposition", "content-id")
# The first line that looks like a delimiter: "--something", then a part's header or the empty line.
_DELIMITER: Final = re.compile(rb"^--(\S[^\r\n]{0,200}?)[ \t]*\r?\n(?:content-|\r?\n)", re.IGNORECASE | re.MULTILINE)
_AFTER_BOUNDARY: Final = re.compile(rb"(--)?[ \t]*+(?:\r*+\n|\r|\Z)")
_PART_HEADER: Final = re.compile(rb"content-|\r?\n", re.IGNORECASE)
_MAX_BOUNDARY: Final = 200  # bytes; RFC 2046, section 5.1.1 allows 70
_DELIMITER_SEARCH_BYTES: Final = 65_536  # bytes in which the first delimiter is looked for


def read(raw: bytes, header: Header, defects: Defects) -> Part:
    """Return the root part of a message with its children."""
    first = {name: header.values[name][0] for name in _CONTENT_FIELDS if name in header.values}
    fields = {name: headers.decode_raw(value, header.codec, defects) for name, value in first.items()}
    return _TreeBuilder(raw, defects).build(fields, header.body, len(raw), "text/plain", 0)


class _Delimiter(NamedTuple):
    start: int  # of its line
    end: int  # behind its line
    closing: bool


class _TreeBuilder:
    """Builds one tree and counts its leaves and the lines that look like delimiters."""

    def __init__(self, raw: bytes, defects: Defects, leaves: int = 0) -> None:
        self._raw = raw
        self._defects = defects
        self._leaves = leaves
        self._candidates = 0

    @cached_property
    def _codec(self) -> str | None:
        """The codec of bytes above 127 in the fields of parts."""
        return charsets.declared_codec(self._raw)

    def build(self, fields: Mapping[str, str], start: int, end: int, default_type: str, depth: int) -> Part:
        part = describe(fields, self._defects, default_type)
        if not part.is_multipart:
            part.content = transfer.decode(self._raw[start:end], part.encoding, self._defects)
            self._leaves += 1
        elif depth >= limits.DEPTH:
            self._defects.note(Defect.MIME_DEPTH)
        elif not self._split(part, start, end, depth):
            part.content_type = "text/plain"  # RFC 2049, section 2
            part.content = self._raw[start:end]
            self._leaves += 1
        return part

    def _split(self, part: Part, start: int, end: int, depth: int) -> bool:
        """Build the children; return False when there is no delimiter."""
        boundary = part.parameters.get("boundary", "").encode("utf-8", "replace")
        delimiters = self._find_delimiters(boundary, start, end) if 0 < len(boundary) <= _MAX_BOUNDARY else []
        if all(one.closing for one in delimiters):
            if self._split_encoded(part, start, end, depth):
                return True
            self._defects.note(Defect.MIME_BOUNDARY)
            end = delimiters[0].start if delimiters else end
            delimiters = self._guess_delimiters(start, end)
            if not delimiters:
                return False
        default_type = "message/rfc822" if part.content_type == "multipart/digest" else "text/plain"
        for begin, stop in self._spans(delimiters, end):
            if self._leaves >= limits.PARTS:
                self._defects.note(Defect.MIME_PARTS)
                break
            part.children.append(self._build_child(begin, stop, default_type, depth + 1))
        return True

    def _split_encoded(self, part: Part, start: int, end: int, depth: int) -> bool:
        """Split a multipart that was encoded as a whole, which RFC 2045, section 6.4 forbids."""
        if part.encoding in transfer.IDENTITY or part.encoding not in transfer.ENCODINGS:
            return False
        decoded = transfer.decode(self._raw[start:end], part.encoding, Defects())
        boundary = part.parameters.get("boundary", "").encode("utf-8", "replace")
        if decoded == self._raw[start:end] or not boundary or b"--" + boundary not in decoded:
            return False
        part.encoding = ""
        self._defects.note(Defect.TRANSFER_INVALID)
        inner = _TreeBuilder(decoded, self._defects, self._leaves)
        found = inner._split(part, 0, len(decoded), depth)
        self._leaves = inner._leaves
        return found

    def _guess_delimiters(self, start: int, end: int) -> list[_Delimiter]:
        """Return the delimiters of the first boundary that looks like one."""
        found = _DELIMITER.search(self._raw, start, min(end, start + _DELIMITER_SEARCH_BYTES))
        return self._find_delimiters(found[1], start, end) if found else []

    def _find_delimiters(self, boundary: bytes, start: int, end: int) -> list[_Delimiter]:
        raw, line = self._raw, b"--" + boundary
        found: list[_Delimiter] = []
        position = raw.find(line, start, end)
        while position >= 0:
            after = position + len(line)
            begins_line = position == start or raw[position - 1] in b"\r\n"
            if begins_line and (rest := _AFTER_BOUNDARY.match(raw, after, end)):
                found.append(_Delimiter(position, rest.end(), rest[1] is not None))
                after = rest.end()
            self._candidates += 1
            if self._candidates > limits.DELIMITERS:
                self._defects.note(Defect.MIME_TRUNCATED)
                break
            position = raw.find(line, after, end)
        return found

    def _spans(self, delimiters: list[_Delimiter], end: int) -> list[tuple[int, int]]:
        """Return where each part begins and ends; the line break before a delimiter belongs to the delimiter."""
        raw = self._raw
        spans: list[tuple[int, int]] = []
        open_at: int | None = None
        closed = False
        for one in delimiters:
            if open_at is not None:
                spans.append((open_at, self._before_line_end(open_at, one.start)))
            elif closed and not _PART_HEADER.match(raw, one.end):
                continue  # text behind the closing delimiter that quotes one
            elif closed:
                self._defects.note(Defect.MIME_BOUNDARY)
            closed = closed or one.closing
            open_at = None if one.closing else one.end
        if open_at is not None:
            if open_at < end or not spans:
                spans.append((open_at, end))
            if not closed:
                self._defects.note(Defect.MIME_UNCLOSED)
        return spans

    def _before_line_end(self, start: int, delimiter: int) -> int:
        for line_end in (b"\r\n", b"\n", b"\r"):
            if delimiter - start >= len(line_end) and self._raw.startswith(line_end, delimiter - len(line_end)):
                return delimiter - len(line_end)
        return delimiter

    def _build_child(self, start: int, end: int, default_type: str, depth: int) -> Part:
        fields, body = headers.scan_part(self._raw, start, end, self._defects)
        decoded: dict[str, str] = {}
        for name, value in fields:
            lower = name.lower()
            if lower in _CONTENT_FIELDS and lower not in decoded:
                codec = None if value.isascii() else self._codec
                decoded[lower] = headers.decode_raw(value, codec, self._defects)
        return self.build(decoded, body, end, default_type, depth)
