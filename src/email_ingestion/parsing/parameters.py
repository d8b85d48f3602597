"""Content-Type and Content-Disposition: the value and its parameters (RFC 2045, 2231, also abused); nothing else."""

from __future__ import annotations

import re
from itertools import islice
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from email_ingestion.parsing import charsets, limits
from email_ingestion.parsing.defects import Defects
from email_ingestion.parsing.encoded_words import decode_words
from email_ingestion.parsing.headers import one_line

# An unquoted value runs to the semicolon, because people write file names with spaces; possessive, hence linear.
_PARAMETER: Final = re.compile(r";\s*+([^\s=;]++)\s*+=\s*+(\"(?:[^\"\\]|\\.)*+\"?|[^;]*+)", re.DOTALL)
_SEGMENT: Final = re.compile(r"([^*]+)(?:\*([0-9]{1,4}))?(\*?)")
_CHARSET: Final = re.compile("([^']*)'[^']*'")  # charset'language'
_ESCAPED: Final = re.compile(r"\\([\"\\])")


class _Piece(NamedTuple):
    order: int
    percent: bool
    value: str


def split(value: str, defects: Defects) -> tuple[str, dict[str, str]]:
    """The lower-case token before the first semicolon, and the decoded parameters by lower-case name."""
    head, semicolon, _ = value.partition(";")
    tokens = head.split(None, 1)
    token = tokens[0].lower() if tokens else ""
    return token, _parameters(value[len(head) :], defects) if semicolon else {}


def _parameters(value: str, defects: Defects) -> dict[str, str]:
    plain: dict[str, str] = {}
    extended: dict[str, list[_Piece]] = {}
    for match in islice(_PARAMETER.finditer(value[: limits.PARAMETER_CHARS]), limits.PARAMETERS):
        name, written = match[1].lower(), _unquoted(match[2].strip())
        segment = _SEGMENT.fullmatch(name) if "*" in name else None
        if segment:
            piece = _Piece(int(segment[2] or 0), bool(segment[3]), written)
            extended.setdefault(segment[1], []).append(piece)
        else:
            plain.setdefault(name, one_line(decode_words(written, defects), defects))
    joined = {name: _joined(sorted(pieces), defects) for name, pieces in extended.items()}
    return plain | joined  # the extended form is the better one of a pair (RFC 6266, section 4.3)


def _unquoted(value: str) -> str:
    r"""Only \" and \\ are escapes here: Windows programs send whole paths without escaping them."""
    return _ESCAPED.sub(r"\1", value[1:].removesuffix('"')) if value.startswith('"') else value


def _joined(pieces: list[_Piece], defects: Defects) -> str:
    """The segments as bytes first, because a character may be split between two (RFC 2231, section 4.1)."""
    charset = ""
    if pieces[0].percent and (prefix := _CHARSET.match(pieces[0].value)):
        charset = prefix[1]
        pieces = [pieces[0]._replace(value=pieces[0].value[prefix.end() :]), *pieces[1:]]
    data = b"".join(_bytes(piece) for piece in pieces)
    value = charsets.decode(data, charset, defects)
    return one_line(decode_words(value, defects), defects)


def _bytes(piece: _Piece) -> bytes:
    written = piece.value.encode("utf-8", "replace")
    return unquote_to_bytes(written) if piece.percent else written
