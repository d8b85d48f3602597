"""Extract the attachments and the body of a winmail.dat (MS-OXTNEF), as Outlook sends them; its dates are not read."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from email_ingestion.parsing import charsets, limits
from email_ingestion.parsing.defects import Defects

_SIGNATURE: Final = struct.pack("<I", 0x223E9F78)
_HEADER: Final = 6  # signature and a key
_ATTRIBUTE: Final = struct.Struct("<BII")  # level, id, length; the value and a checksum follow
_CHECKSUM: Final = 2
_NEW_ATTACHMENT: Final = 0x00069002  # attAttachRenddata
_TITLE: Final = 0x00018010
_DATA: Final = 0x0006800F
_PROPERTIES: Final = 0x00069005
_MESSAGE_PROPERTIES: Final = 0x00069003
_BODY: Final = 0x0002800C

# MAPI properties (MS-OXPROPS) of an attachment.
_FILENAME: Final = (0x3707, 0x3001)  # long, display name
_MIME_TYPE: Final = 0x370E
_BINARY: Final = 0x3701
_OBJECT: Final = -_BINARY  # the same as an object: another message, itself in TNEF
_PLAIN_BODY: Final = 0x1000
_RTF_BODY: Final = 0x1009
_HTML_BODY: Final = 0x1013
_NAMED: Final = 0x8000
_FIXED: Final = {0x02: 4, 0x03: 4, 0x04: 4, 0x05: 8, 0x06: 8, 0x07: 8, 0x0A: 4, 0x0B: 4, 0x14: 8, 0x40: 8, 0x48: 16}
_INTERFACE: Final = 16  # bytes of an identifier before the content of an object
_OBJECT_KIND: Final = 0x0D
_MULTIPLE: Final = 0x1000


@dataclass(slots=True)
class TnefAttachment:
    """One attachment of the container."""

    filename: str = ""
    content_type: str = ""
    content: bytes = b""


@dataclass(slots=True)
class TnefBody:
    """The body of the message in the container; at most one of them, the richest, is set beside the plain text."""

    plain: str = ""
    html: bytes | str = b""
    rtf: bytes = b""  # compressed


def read_body(data: bytes) -> TnefBody:
    """Return the body, as far as the container can be read."""
    body = TnefBody()
    for name, value in _iter_attributes(data):
        if name == _BODY:
            body.plain = body.plain or charsets.decode(value.partition(b"\0")[0], None, Defects())
        elif name == _MESSAGE_PROPERTIES:
            properties = _read_properties(value)
            body.plain = _as_text(properties.get(_PLAIN_BODY)) or body.plain
            body.html = properties.get(_HTML_BODY) or body.html
            rtf = properties.get(_RTF_BODY)
            body.rtf = rtf if isinstance(rtf, bytes) else body.rtf
    return body


def unwrap(data: bytes) -> list[TnefAttachment]:
    """Return the attachments, as far as the container can be read. Raises ValueError when `data` is not TNEF."""
    if not data.startswith(_SIGNATURE):
        raise ValueError("no TNEF signature")
    found: list[TnefAttachment] = []
    for name, value in _iter_attributes(data):
        if name == _NEW_ATTACHMENT:
            if len(found) >= limits.TNEF_ATTACHMENTS:
                break
            found.append(TnefAttachment())
        elif found:
            _apply_attribute(found[-1], name, value)
    return found


def _iter_attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = _HEADER
    while position + _ATTRIBUTE.size <= len(data):
        _, name, length = _ATTRIBUTE.unpack_from(data, position)
        start = position + _ATTRIBUTE.size
        yield name, data[start : start + length]
        position = start + length + _CHECKSUM


def _apply_attribute(attachment: TnefAttachment, name: int, value: bytes) -> None:
    if name == _TITLE:
        attachment.filename = attachment.filename or _text(value)
    elif name == _DATA:
        attachment.content = value
    elif name == _PROPERTIES:
        _apply_properties(attachment, value)


def _apply_properties(attachment: TnefAttachment, value: bytes) -> None:
    properties = _read_properties(value)
    for name in reversed(_FILENAME):
        attachment.filename = _as_text(properties.get(name)) or attachment.filename
    attachment.content_type = _as_text(properties.get(_MIME_TYPE)).lower() or attachment.content_type
    inner = properties.get(_OBJECT)
    content = properties.get(_BINARY)
    if isinstance(inner, bytes) and inner:  # what stands in the attribute is then a sentence that says so
        attachment.content = inner
        if inner.startswith(_SIGNATURE):
            attachment.content_type = "application/ms-tnef"
    elif isinstance(content, bytes) and not attachment.content:
        attachment.content = content


def _read_properties(value: bytes) -> dict[int, bytes | str]:
    """Return the properties up to one that is cut off or of a kind we do not know: what follows cannot be found."""
    found: dict[int, bytes | str] = {}
    with suppress(struct.error, ValueError):
        for name, content in _iter_properties(value):
            found.setdefault(name, content)
    return found


def _iter_properties(value: bytes) -> Iterator[tuple[int, bytes | str]]:
    (count,) = struct.unpack_from("<I", value)
    position = 4
    for _ in range(min(count, limits.TNEF_PROPERTIES)):
        kind, name = struct.unpack_from("<HH", value, position)
        position += 4
        if name >= _NAMED:
            position = _skip_name(value, position)
        if kind in _FIXED:
            position += _FIXED[kind]
            continue
        if kind & _MULTIPLE and kind & ~_MULTIPLE in _FIXED:
            (amount,) = struct.unpack_from("<I", value, position)
            position += 4 + amount * _FIXED[kind & ~_MULTIPLE]
            continue
        (amount,) = struct.unpack_from("<I", value, position)
        position += 4
        for _ in range(min(amount, limits.TNEF_PROPERTIES)):
            (length,) = struct.unpack_from("<I", value, position)
            position += 4
            base = kind & ~_MULTIPLE
            key = -name if base == _OBJECT_KIND else name
            yield key, _decode_property(base, value[position : position + length])
            position += length + -length % 4


def _skip_name(value: bytes, position: int) -> int:
    """Return the offset behind the name of a named property: a GUID, then a number or a text."""
    (is_text,) = struct.unpack_from("<I", value, position + 16)
    if not is_text:
        return position + 24
    length: int = struct.unpack_from("<I", value, position + 20)[0]
    return position + 24 + length + -length % 4


def _decode_property(kind: int, value: bytes) -> bytes | str:
    match kind:
        case 0x1F:  # text in UTF-16
            return value.decode("utf-16-le", "replace").partition("\0")[0]
        case 0x1E:  # text in the sender's code page
            return charsets.decode(value.partition(b"\0")[0], None, Defects())
        case 0x0D:  # object
            return value[_INTERFACE:]
        case 0x102:  # bytes
            return value
        case _:
            raise ValueError(f"property of kind {kind:#x}")


def _as_text(value: bytes | str | None) -> str:
    return value if isinstance(value, str) else ""


def _text(value: bytes) -> str:
    return charsets.decode(value.partition(b"\0")[0][:1000], None, Defects())
