"""Attachments out of winmail.dat (MS-OXTNEF), which Outlook wraps them in; its texts and dates are left alone."""

from __future__ import annotations

import struct
from collections.abc import Iterator
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

# MAPI properties (MS-OXPROPS) of an attachment.
_FILENAME: Final = (0x3707, 0x3001)  # long, display name
_MIME_TYPE: Final = 0x370E
_BINARY: Final = 0x3701
_NAMED: Final = 0x8000
_FIXED: Final = {0x02: 4, 0x03: 4, 0x04: 4, 0x05: 8, 0x06: 8, 0x07: 8, 0x0A: 4, 0x0B: 4, 0x14: 8, 0x40: 8, 0x48: 16}
_INTERFACE: Final = 16  # bytes of an identifier before the content of an object
_MULTIPLE: Final = 0x1000


@dataclass(slots=True)
class Wrapped:
    """One attachment, as the container describes it."""

    filename: str = ""
    content_type: str = ""
    content: bytes = b""


def unwrap(data: bytes) -> list[Wrapped]:
    """The attachments, as far as the container can be read. Raises ValueError when it is none."""
    if not data.startswith(_SIGNATURE):
        raise ValueError("no TNEF signature")
    found: list[Wrapped] = []
    for name, value in _attributes(data):
        if name == _NEW_ATTACHMENT:
            if len(found) >= limits.TNEF_ATTACHMENTS:
                break
            found.append(Wrapped())
        elif found:
            _take(found[-1], name, value)
    return found


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = _HEADER
    while position + _ATTRIBUTE.size <= len(data):
        _, name, length = _ATTRIBUTE.unpack_from(data, position)
        start = position + _ATTRIBUTE.size
        yield name, data[start : start + length]
        position = start + length + _CHECKSUM


def _take(wrapped: Wrapped, name: int, value: bytes) -> None:
    if name == _TITLE:
        wrapped.filename = wrapped.filename or _text(value)
    elif name == _DATA:
        wrapped.content = value
    elif name == _PROPERTIES:
        _take_properties(wrapped, value)


def _take_properties(wrapped: Wrapped, value: bytes) -> None:
    try:
        properties = dict(_properties(value))
    except (struct.error, ValueError):  # cut off, or of a kind we do not know: what follows cannot be found
        return
    for name in reversed(_FILENAME):
        wrapped.filename = _as_text(properties.get(name)) or wrapped.filename
    wrapped.content_type = _as_text(properties.get(_MIME_TYPE)).lower()
    content = properties.get(_BINARY)
    if isinstance(content, bytes) and not wrapped.content:
        wrapped.content = content


def _properties(value: bytes) -> Iterator[tuple[int, bytes | str]]:
    (count,) = struct.unpack_from("<I", value)
    position = 4
    for _ in range(min(count, limits.TNEF_PROPERTIES)):
        kind, name = struct.unpack_from("<HH", value, position)
        position += 4
        if name >= _NAMED:
            position = _after_name(value, position)
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
            yield name, _decoded(kind & ~_MULTIPLE, value[position : position + length])
            position += length + -length % 4


def _after_name(value: bytes, position: int) -> int:
    """Past the name of a named property: a set's identifier, then a number or a text."""
    (is_text,) = struct.unpack_from("<I", value, position + 16)
    if not is_text:
        return position + 24
    length: int = struct.unpack_from("<I", value, position + 20)[0]
    return position + 24 + length + -length % 4


def _decoded(kind: int, value: bytes) -> bytes | str:
    match kind:
        case 0x1F:  # text in UTF-16
            return value.decode("utf-16-le", "replace").partition("\0")[0]
        case 0x1E:  # text in the sender's code page
            return _text(value)
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
