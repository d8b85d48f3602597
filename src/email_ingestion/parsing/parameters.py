"""Read Content-Type and Content-Disposition: the value and its parameters (RFC 2045, RFC 2231), also malformed ones."""

from __future__ import annotations

import re
from itertools import islice
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from email_ingestion.parsing import charsets, limits
from email_ingestion.parsing.defects import Defects
from email_ingestion.parsing.encoded_words import decode_words
from email_ingestion.parsing.headers import one_line, without_comments

# An unquoted value runs to the semicolon, because people write file names with spaces; possessive, hence linear.
_PARAMETER: Final = re.compile(
    r"(?:[;,]|(?<!\s)\s)\s*+([^\s=;,\"]++)\s*+=\s*+(\"(?:[^\"\\]|\\.)*+\"?|[^;]*+)", re.DOTALL
)
_VALUE: Final = re.compile(r"[^\s;,]*")
# Behind the value of one of these that is not in quotes, a parameter may follow without its semicolon.
_ONE_WORD: Final = frozenset({"charset", "format", "delsp", "boundary"})
_MAX_MISSING: Final = 5  # semicolons in a row
_NEXT: Final = re.compile(r"\s([a-z-]{4,20}=.*)", re.IGNORECASE | re.DOTALL)
_SEGMENT: Final = re.compile(r"([^*]+)(?:\*([0-9]{1,4}))?(\*?)")
_CHARSET: Final = re.compile("([^']*)'[^']*'")  # charset'language'
_ESCAPED: Final = re.compile(r"\\([\"\\])")


class _Segment(NamedTuple):
    order: int
    percent: bool
    value: str


def parse(value: str, defects: Defects) -> tuple[str, dict[str, str]]:
    """Return the lower-case token before the first semicolon, and the decoded parameters by lower-case name.

    A comment is no part of the token, and a semicolon that is missing before a parameter is not missed.
    """
    plain = value.strip()
    if "(" in plain and _VALUE.fullmatch(plain.partition(";")[0].partition("(")[0]) is not None:
        head, semicolon, rest = plain.partition(";")
        plain = without_comments(head).strip() + semicolon + rest
    match = _VALUE.match(plain)
    token = match[0] if match else ""
    if "=" in token:  # the value is missing: "Content-Disposition: filename=a.pdf"
        return "", _parse_pairs(";" + plain, defects)
    rest = plain[len(token) :]
    return token.strip("\"'").lower(), _parse_pairs(rest, defects) if "=" in rest else {}


def _parse_pairs(value: str, defects: Defects, depth: int = 0) -> dict[str, str]:
    plain: dict[str, str] = {}
    extended: dict[str, list[_Segment]] = {}
    for match in islice(_PARAMETER.finditer(value[: limits.PARAMETER_CHARS]), limits.PARAMETERS):
        name, written = match[1].lower(), match[2].strip()
        one_word = depth < _MAX_MISSING and name in _ONE_WORD and not written.startswith('"')
        if one_word and (following := _NEXT.search(written)):
            for other, text in _parse_pairs(";" + following[1], defects, depth + 1).items():
                plain.setdefault(other, text)
            written = written[: following.start()].rstrip()
        written = _unquote(written)
        numbered = _SEGMENT.fullmatch(name) if "*" in name else None
        if numbered:
            segment = _Segment(int(numbered[2] or 0), bool(numbered[3]), written)
            extended.setdefault(numbered[1], []).append(segment)
        else:
            plain.setdefault(name, one_line(decode_words(written, defects), defects))
    joined = {name: _join_segments(sorted(segments), defects) for name, segments in extended.items()}
    return plain | joined  # the extended form is the better one of a pair (RFC 6266, section 4.3)


def _unquote(value: str) -> str:
    r"""Undo \" and \\ only: Windows programs send whole paths without escaping them."""
    return _ESCAPED.sub(r"\1", value[1:].removesuffix('"')) if value.startswith('"') else value


def _join_segments(segments: list[_Segment], defects: Defects) -> str:
    """Join the bytes before they are decoded: a character may be split between two segments (RFC 2231, section 4.1)."""
    charset = ""
    if segments[0].percent and (prefix := _CHARSET.match(segments[0].value)):
        charset = prefix[1]
        segments = [segments[0]._replace(value=segments[0].value[prefix.end() :]), *segments[1:]]
    data = b"".join(_segment_bytes(segment) for segment in segments)
    value = charsets.decode(data, charset, defects)
    return one_line(decode_words(value, defects), defects)


def _segment_bytes(segment: _Segment) -> bytes:
    written = segment.value.encode("utf-8", "replace")
    return unquote_to_bytes(written) if segment.percent else written
