"""The MIME structure of a message as a tree of decoded parts; which of them is the text is decided in `parts`.

    raw ── headers.scan ── own Content-Type ──▶ fast_tree ──(fails or is not to be trusted)──▶ second_opinion ──▶ Part

Neither parser sees the top header: they get the body behind a header of one or two fields. Its fields are kept by
`headers` in their order and with their bytes, which neither would give, and no header bomb reaches them.
"""

from __future__ import annotations

import re
from typing import Final

from email_ingestion.parsing import fast_tree, headers, second_opinion
from email_ingestion.parsing.defects import Defect, Defects
from email_ingestion.parsing.headers import Header
from email_ingestion.parsing.part import IDENTITY, Part, describe

_CONTENT_FIELDS: Final = ("content-type", "content-transfer-encoding", "content-disposition", "content-id")
# The first line that looks like a delimiter: "--something", then a part's header or the empty line.
_DELIMITER: Final = re.compile(rb"^--(\S[^\r\n]{0,200}?)[ \t]*\r?\n(?:content-|\r?\n)", re.IGNORECASE | re.MULTILINE)
_LONGEST_BOUNDARY: Final = 200  # bytes; RFC 2046, section 5.1.1 allows 70
_SNIFFED: Final = 65_536  # bytes in which the first delimiter is looked for


def read(raw: bytes, header: Header, defects: Defects) -> Part:
    """The root part of a message with everything below it."""
    fields = _content_fields(header, defects)
    root = describe(fields, defects)
    if root.is_multipart:
        return _multipart(root, raw, header.body, defects)
    root.content = raw[header.body :] if root.encoding in IDENTITY else _decoded(root, raw, header.body, defects)
    return root


def _content_fields(header: Header, defects: Defects) -> dict[str, str]:
    """The first of each: a second Content-Type is more often the one a gateway added than the better one."""
    first = {name: header.values[name][0] for name in _CONTENT_FIELDS if name in header.values}
    return {name: headers.text(value, header.codec, defects) for name, value in first.items()}


def _multipart(root: Part, raw: bytes, start: int, defects: Defects) -> Part:
    boundary = _boundary(root.parameters.get("boundary", "").encode("utf-8", "replace"), raw, start, defects)
    quoted = boundary.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    top = b'Content-Type: %b; boundary="%b"' % (root.content_type.encode(), quoted)
    tree = _read(top, raw, start, defects) if boundary else None
    if tree is None or not tree.children:
        return _as_text(root, raw[start:])
    root.children = tree.children
    return root


def _boundary(declared: bytes, raw: bytes, start: int, defects: Defects) -> bytes:
    """The declared boundary if it occurs, else the one that seems to be meant; empty when there is none."""
    boundary = declared
    if not 0 < len(declared) <= _LONGEST_BOUNDARY or raw.find(b"--" + declared, start) < 0:
        defects.note(Defect.MIME_BOUNDARY)
        delimiter = _DELIMITER.search(raw, start, start + _SNIFFED)
        boundary = delimiter[1] if delimiter else b""
    if boundary and raw.rfind(b"--" + boundary + b"--", start) < 0:
        defects.note(Defect.MIME_UNCLOSED)
    return boundary


def _as_text(root: Part, body: bytes) -> Part:
    """A multipart that cannot be taken apart is shown as the text it is (RFC 2049, section 2)."""
    root.content_type, root.content = "text/plain", body
    return root


def _decoded(root: Part, raw: bytes, start: int, defects: Defects) -> bytes:
    top = b"Content-Type: application/octet-stream\nContent-Transfer-Encoding: %b" % root.encoding.encode()
    tree = _read(top, raw, start, defects)
    return tree.content if tree else raw[start:]


def _read(top: bytes, raw: bytes, start: int, defects: Defects) -> Part | None:
    """The first opinion that can be trusted; the defects of a distrusted one are forgotten with it."""
    source = b"".join((top, b"\n\n", memoryview(raw)[start:]))
    for opinion in (fast_tree.read, second_opinion.read):
        found = Defects()
        tree = opinion(source, found)
        if tree is not None:
            defects.add(found)
            return tree
    return None
