"""Parse the MIME structure of a message into a tree of decoded parts; `content` decides which of them is the text.

    raw ── headers.scan ── own Content-Type ──▶ rust_parser ──(fails or does not support it)──▶ stdlib_parser ──▶ Part

Neither parser sees the top header: each gets the body behind a header of one or two fields that we write. `headers`
keeps the real fields in their order and with their bytes, which neither parser does, and no header bomb reaches them.
"""

from __future__ import annotations

import re
from typing import Final

from email_ingestion.parsing import headers, rust_parser, stdlib_parser
from email_ingestion.parsing.defects import Defect, Defects
from email_ingestion.parsing.headers import Header
from email_ingestion.parsing.part import IDENTITY, Part, describe

_CONTENT_FIELDS: Final = ("content-type", "content-transfer-encoding", "content-disposition", "content-id")
# The first line that looks like a delimiter: "--something", then a part's header or the empty line.
_DELIMITER: Final = re.compile(rb"^--(\S[^\r\n]{0,200}?)[ \t]*\r?\n(?:content-|\r?\n)", re.IGNORECASE | re.MULTILINE)
_MAX_BOUNDARY: Final = 200  # bytes; RFC 2046, section 5.1.1 allows 70
_DELIMITER_SEARCH_BYTES: Final = 65_536  # bytes in which the first delimiter is looked for


def read(raw: bytes, header: Header, defects: Defects) -> Part:
    """Return the root part of a message with its children."""
    fields = _content_fields(header, defects)
    root = describe(fields, defects)
    if root.is_multipart:
        return _parse_multipart(root, raw, header.body, defects)
    root.content = raw[header.body :] if root.encoding in IDENTITY else _decode_body(root, raw, header.body, defects)
    return root


def _content_fields(header: Header, defects: Defects) -> dict[str, str]:
    """Return the first field of each name: a second Content-Type was usually added by a gateway."""
    first = {name: header.values[name][0] for name in _CONTENT_FIELDS if name in header.values}
    return {name: headers.decode_raw(value, header.codec, defects) for name, value in first.items()}


def _parse_multipart(root: Part, raw: bytes, start: int, defects: Defects) -> Part:
    boundary = _find_boundary(root.parameters.get("boundary", "").encode("utf-8", "replace"), raw, start, defects)
    quoted = boundary.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    top = b'Content-Type: %b; boundary="%b"' % (root.content_type.encode(), quoted)
    tree = _parse_body(top, raw, start, defects) if boundary else None
    if tree is None or not tree.children:
        return _demote_to_text(root, raw[start:])
    root.children = tree.children
    return root


def _find_boundary(declared: bytes, raw: bytes, start: int, defects: Defects) -> bytes:
    """Return the declared boundary if it occurs in the body, else the first that looks like one, else b""."""
    boundary = declared
    if not 0 < len(declared) <= _MAX_BOUNDARY or raw.find(b"--" + declared, start) < 0:
        defects.note(Defect.MIME_BOUNDARY)
        delimiter = _DELIMITER.search(raw, start, start + _DELIMITER_SEARCH_BYTES)
        boundary = delimiter[1] if delimiter else b""
    if boundary and raw.rfind(b"--" + boundary + b"--", start) < 0:
        defects.note(Defect.MIME_UNCLOSED)
    return boundary


def _demote_to_text(root: Part, body: bytes) -> Part:
    """Treat a multipart that cannot be split as plain text (RFC 2049, section 2)."""
    root.content_type, root.content = "text/plain", body
    return root


def _decode_body(root: Part, raw: bytes, start: int, defects: Defects) -> bytes:
    top = b"Content-Type: application/octet-stream\nContent-Transfer-Encoding: %b" % root.encoding.encode()
    tree = _parse_body(top, raw, start, defects)
    return tree.content if tree else raw[start:]


def _parse_body(top: bytes, raw: bytes, start: int, defects: Defects) -> Part | None:
    """Return the tree of the first parser that succeeds, and keep only the defects that this parser found."""
    source = b"".join((top, b"\n\n", memoryview(raw)[start:]))
    for parse_tree in (rust_parser.parse_tree, stdlib_parser.parse_tree):
        found = Defects()
        tree = parse_tree(source, found)
        if tree is not None:
            defects.add(found)
            return tree
    return None
