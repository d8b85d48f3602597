"""The structure of ordinary mail through fast-mail-parser (Rust); what it would get wrong it does not answer.

Of its functions `parse_email_tree` is the one to use: `parse_email` flattens (it loses which parts are alternatives,
the order among texts and attachments, and format=flowed) and decodes texts with a guess where the charset is wrong.
The tree gives structure and transfer-decoded bytes; charsets, names and parameters are read in `part` and `charsets`,
because it decodes 8-bit names as Latin-1, cannot join split RFC 2047 words and RFC 2231 segments, and cuts names at
an escaped quote. Measured with 0.10.0.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from fast_mail_parser import ParseError, PyMimePart, parse_email_tree

from email_ingestion.parsing import limits
from email_ingestion.parsing.defects import Defect, Defects
from email_ingestion.parsing.part import IDENTITY, Part, describe

_DECODED: Final = IDENTITY | {"base64", "quoted-printable"}  # encodings it undoes; others it passes on as they are
_NESTING: Final = (b"message/rfc822", b"message/global", b"multipart/digest")


class _Distrusted(Exception):
    """The answer may be wrong here: ask the other parser."""


def read(source: bytes, defects: Defects) -> Part | None:
    """The tree of `source`, or None when it should be read by the standard library."""
    if not _is_ordinary(source):
        return None
    try:
        return _Reader(source, defects).root()
    except (ParseError, _Distrusted):
        return None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # a Rust panic; PyO3 derives it from BaseException
            raise
        return None


def _is_ordinary(source: bytes) -> bool:
    """Whether it stays linear on this message; see `limits`."""
    size = len(source) or 1
    words, copies = limits.FAST_WORD_WORK // size, limits.FAST_COPY_BYTES // size
    return not (
        (_exceeds(source, b"=?", b"?", words) and source.count(b"=?") > words)
        or (_exceeds(source, b"\n--", b"-", limits.FAST_DELIMITERS) and source.count(b"\n--") > limits.FAST_DELIMITERS)
        or (_exceeds(source, _NESTING[0], b":", copies) and _nested(source) > copies)
    )


def _exceeds(source: bytes, mark: bytes, sign: bytes, most: int) -> bool:
    """Whether there may be more than so many marks: by the space that they would need, and by a sign that each has.

    Base64 has none of the three signs, so the exact counts are seldom needed. Searching for one byte takes a tenth of
    the time of counting it, which would cost more than the parser itself.
    """
    if most * len(mark) >= len(source):
        return False
    position = -1
    for _ in range(most + 1):
        position = source.find(sign, position + 1)
        if position < 0:
            return False
    return True


def _nested(source: bytes) -> int:
    lowered = source.lower()
    return sum(map(lowered.count, _NESTING))


class _Reader:
    """One tree, with the number of parts taken so far."""

    def __init__(self, source: bytes, defects: Defects) -> None:
        self._tree = parse_email_tree(source)
        self._ascii = source.isascii()
        self._defects = defects
        self._parts = 0
        self._boundaries: list[str] = []

    def root(self) -> Part:
        part = self._read(self._tree, "text/plain", 0)
        self._check_boundaries()
        return part

    def _read(self, node: PyMimePart, default_type: str, depth: int) -> Part:
        part = describe(self._fields(node), self._defects, default_type)
        if part.is_multipart:
            self._boundaries.append(part.parameters.get("boundary", ""))
            part.children = self._children(node, part, depth)
            return part
        if part.encoding not in _DECODED:
            raise _Distrusted
        part.content = node.content or b""
        return part

    def _children(self, node: PyMimePart, part: Part, depth: int) -> list[Part]:
        if not node.children or node.content is not None:
            raise _Distrusted  # its boundary is missing or never occurs: the body would be lost
        if depth >= limits.DEPTH:
            self._defects.note(Defect.MIME_DEPTH)
            return []
        default_type = "message/rfc822" if part.content_type == "multipart/digest" else "text/plain"
        children: list[Part] = []
        for child in node.children:
            if self._parts >= limits.PARTS:
                self._defects.note(Defect.MIME_PARTS)
                break
            self._parts += 1
            children.append(self._read(child, default_type, depth + 1))
        return children

    def _fields(self, node: PyMimePart) -> dict[str, str]:
        """The first value of each field. With 8-bit bytes about, letters above 127 may be a Latin-1 guess of its."""
        fields = {name.lower(): values[0] for name, values in reversed(node.headers.items())}
        for name, value in fields.items():
            if name.startswith("content-") and not value.isascii() and (not self._ascii or "\ufffd" in value):
                raise _Distrusted
        return fields

    def _check_boundaries(self) -> None:
        """It takes "--xy" for a delimiter of boundary "x" (RFC 2046, section 5.1.1 has only white space follow)."""
        ordered = sorted(self._boundaries)
        if any(longer.startswith(shorter) for shorter, longer in pairwise(ordered)):
            raise _Distrusted
