"""MIME parts of a raw message as exact byte ranges, as FETCH must return them.

The standard library's parser decodes; IMAP wants the bytes as they came, so this one only cuts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from email.parser import BytesHeaderParser
from typing import TYPE_CHECKING

from gmail_sandbox.message import header_block

if TYPE_CHECKING:
    from email.message import Message

_MAX_DEPTH = 30
_FIELD = re.compile(rb"[^\r\n:]+:[^\n]*\n?(?:[ \t][^\n]*\n?)*")


@dataclass
class MimePart:
    """A part: its header with the blank line, its body, and the parts within."""

    head: bytes
    body: bytes
    fields: Message
    children: list[MimePart] = field(default_factory=list)

    @property
    def content_type(self) -> str:
        """Return the type, or the default of RFC 2045 section 5.2."""
        return self.fields.get_content_type()

    @property
    def is_multipart(self) -> bool:
        """Tell whether the children are body parts."""
        return self.content_type.startswith("multipart/") and bool(self.children)

    @property
    def is_message(self) -> bool:
        """Tell whether the one child is a forwarded message."""
        return self.content_type == "message/rfc822" and bool(self.children)


def parse(raw: bytes, depth: int = 0) -> MimePart:
    """Cut a message or part into header, body and children."""
    head = header_block(raw)
    body = raw[len(head) :]
    part = MimePart(head, body, BytesHeaderParser().parsebytes(head))
    if depth < _MAX_DEPTH:
        part.children = _children(part, depth)
    return part


def _children(part: MimePart, depth: int) -> list[MimePart]:
    if part.content_type == "message/rfc822":
        return [parse(part.body, depth + 1)] if part.body else []
    if not part.content_type.startswith("multipart/"):
        return []
    boundary = part.fields.get_boundary()
    if not boundary:
        return []
    return [parse(piece, depth + 1) for piece in _split(part.body, boundary.encode("utf-8", "surrogateescape"))]


def _split(body: bytes, boundary: bytes) -> list[bytes]:
    """Return the pieces between delimiter lines; the line break before one belongs to it (RFC 2046 section 5.1.1)."""
    delimiter = re.compile(rb"(?:\A|\r?\n)--" + re.escape(boundary) + rb"(--)?[ \t]*(?=\r?\n|\Z)")
    pieces: list[bytes] = []
    start: int | None = None
    for match in delimiter.finditer(body):
        if start is not None:
            pieces.append(_without_break(body[start : match.start()]))
        start = match.end()
        if match[1]:
            return pieces
    if start is not None and start < len(body):
        pieces.append(_without_break(body[start:]))
    return pieces


def _without_break(piece: bytes) -> bytes:
    return piece[2:] if piece.startswith(b"\r\n") else piece.removeprefix(b"\n")


def section(root: MimePart, path: tuple[int, ...], specifier: bytes, names: tuple[bytes, ...]) -> bytes | None:
    """Return the bytes of a section (RFC 3501 section 6.4.5), or None when there is no such part."""
    part = _descend(root, path)
    if part is None:
        return None
    if specifier == b"MIME":
        return part.head
    if not specifier:
        return part.body if path else part.head + part.body
    if path:
        # HEADER and TEXT of a numbered part speak of the message it contains.
        if not part.is_message:
            return None
        part = part.children[0]
    if specifier == b"TEXT":
        return part.body
    return part.head if specifier == b"HEADER" else _pick(part.head, names, keep=specifier == b"HEADER.FIELDS")


def _descend(root: MimePart, path: tuple[int, ...]) -> MimePart | None:
    part = root
    for at, number in enumerate(path):
        holder = part.children[0] if at and part.is_message else part
        if holder.is_multipart:
            if not 1 <= number <= len(holder.children):
                return None
            part = holder.children[number - 1]
        elif number == 1:
            part = holder
        else:
            return None
    return part


def _pick(head: bytes, names: tuple[bytes, ...], *, keep: bool) -> bytes:
    lower_names = {name.lower() for name in names}
    picked = [
        match[0]
        for match in _FIELD.finditer(head)
        if (match[0].partition(b":")[0].strip().lower() in lower_names) is keep
    ]
    return b"".join(picked) + b"\r\n"
