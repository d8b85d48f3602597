"""Parse the MIME structure of ordinary mail with fast-mail-parser (Rust); leave mail it would get wrong to the caller.

Use `parse_email_tree`: `parse_email` flattens the message (it loses which parts are alternatives, the order of texts
and attachments, and format=flowed) and guesses where a charset is wrong. The tree gives the structure and
transfer-decoded bytes. `part` and `charsets` read charsets, file names and parameters, because fast-mail-parser
decodes 8-bit names as Latin-1, cannot join split RFC 2047 words and RFC 2231 segments, and cuts a name at an escaped
quote. Observed with version 0.10.0.
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


class _Unsupported(Exception):
    """fast-mail-parser may be wrong about this message: use the standard library's parser."""


def parse_tree(source: bytes, defects: Defects) -> Part | None:
    """Return the tree of `source`; None when the standard library should parse it."""
    if not _is_linear(source):
        return None
    try:
        return _RustTreeBuilder(source, defects).build()
    except (ParseError, _Unsupported):
        return None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # a Rust panic; PyO3 derives it from BaseException
            raise
        return None


def _is_linear(source: bytes) -> bool:
    """Tell whether fast-mail-parser needs linear time for this message (`limits` has the measurements)."""
    size = len(source) or 1
    words, copies = limits.RUST_WORD_WORK // size, limits.RUST_COPY_BYTES // size
    return not (
        (_may_exceed(source, b"=?", b"?", words) and source.count(b"=?") > words)
        or (
            _may_exceed(source, b"\n--", b"-", limits.RUST_DELIMITERS)
            and source.count(b"\n--") > limits.RUST_DELIMITERS
        )
        or (_may_exceed(source, _NESTING[0], b":", copies) and _count_nested_messages(source) > copies)
    )


def _may_exceed(source: bytes, marker: bytes, rare_byte: bytes, limit: int) -> bool:
    """Tell cheaply whether `source` may have more than `limit` markers; `rare_byte` is one byte of each marker.

    Base64 has none of the three rare bytes, so the exact counts are seldom needed. Searching for one byte takes a
    tenth of the time of counting the markers, which would cost more than the parser itself.
    """
    if limit * len(marker) >= len(source):
        return False
    position = -1
    for _ in range(limit + 1):
        position = source.find(rare_byte, position + 1)
        if position < 0:
            return False
    return True


def _count_nested_messages(source: bytes) -> int:
    lowered = source.lower()
    return sum(map(lowered.count, _NESTING))


class _RustTreeBuilder:
    """Builds one tree and counts its parts."""

    def __init__(self, source: bytes, defects: Defects) -> None:
        self._tree = parse_email_tree(source)
        self._ascii = source.isascii()
        self._defects = defects
        self._parts = 0
        self._boundaries: list[str] = []

    def build(self) -> Part:
        part = self._build_part(self._tree, "text/plain", 0)
        self._check_boundaries()
        return part

    def _build_part(self, node: PyMimePart, default_type: str, depth: int) -> Part:
        part = describe(self._content_fields(node), self._defects, default_type)
        if part.is_multipart:
            self._boundaries.append(part.parameters.get("boundary", ""))
            part.children = self._build_children(node, part, depth)
            return part
        if part.encoding not in _DECODED:
            raise _Unsupported
        part.content = node.content or b""
        return part

    def _build_children(self, node: PyMimePart, part: Part, depth: int) -> list[Part]:
        if not node.children or node.content is not None:
            raise _Unsupported  # its boundary is missing or never occurs: the body would be lost
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
            children.append(self._build_part(child, default_type, depth + 1))
        return children

    def _content_fields(self, node: PyMimePart) -> dict[str, str]:
        """Return the first value of each field; raise _Unsupported where Latin-1 may have been guessed for it."""
        fields = {name.lower(): values[0] for name, values in reversed(node.headers.items())}
        for name, value in fields.items():
            if name.startswith("content-") and not value.isascii() and (not self._ascii or "\ufffd" in value):
                raise _Unsupported
        return fields

    def _check_boundaries(self) -> None:
        """Refuse boundaries that begin with each other: it takes "--xy" for a delimiter of boundary "x".

        RFC 2046, section 5.1.1 allows only white space after the boundary.
        """
        ordered = sorted(self._boundaries)
        if any(longer.startswith(shorter) for shorter, longer in pairwise(ordered)):
            raise _Unsupported
