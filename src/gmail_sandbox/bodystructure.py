"""ENVELOPE and BODYSTRUCTURE as text (RFC 3501 section 7.4.2)."""

from __future__ import annotations

from email.utils import getaddresses
from typing import TYPE_CHECKING

from gmail_sandbox.imap_syntax import format_nstring, format_quoted

if TYPE_CHECKING:
    from email.message import Message

    from gmail_sandbox.mime import MimePart

_ADDRESSES = ("from", "sender", "reply-to", "to", "cc", "bcc")
# A missing Sender or Reply-To is the From (RFC 3501 section 7.4.2).
_DEFAULTS = {"sender": "from", "reply-to": "from"}


def envelope(part: MimePart) -> bytes:
    """Return the ENVELOPE of a message."""
    fields = part.fields
    addresses = [_addresses(fields, name) for name in _ADDRESSES]
    values = [_header(fields, "date"), _header(fields, "subject"), *addresses]
    return b"(" + b" ".join([*values, _header(fields, "in-reply-to"), _header(fields, "message-id")]) + b")"


def _bytes(text: object) -> bytes:
    return str(text).encode("utf-8", "surrogateescape")


def _raw_header(fields: Message, name: str) -> str | None:
    for field_name, value in fields.raw_items():
        if field_name.lower() == name:
            return " ".join(str(value).splitlines()).strip()
    return None


def _header(fields: Message, name: str) -> bytes:
    value = _raw_header(fields, name)
    return format_nstring(None if value is None else _bytes(value))


def _addresses(fields: Message, name: str) -> bytes:
    value = _raw_header(fields, name)
    if value is None and name in _DEFAULTS:
        value = _raw_header(fields, _DEFAULTS[name])
    parsed = [(display_name, address) for display_name, address in getaddresses([value or ""]) if address]
    if not parsed:
        return b"NIL"
    return b"(" + b"".join(_address(display_name, address) for display_name, address in parsed) + b")"


def _address(display_name: str, address: str) -> bytes:
    local, _, host = address.rpartition("@")
    parts = (
        format_nstring(_bytes(display_name) if display_name else None),
        b"NIL",
        format_nstring(_bytes(local)),
        format_nstring(_bytes(host)),
    )
    return b"(" + b" ".join(parts) + b")"


def body_structure(part: MimePart, *, extended: bool) -> bytes:
    """Return the BODYSTRUCTURE, or BODY when not `extended`."""
    if part.is_multipart:
        inner = b"".join(body_structure(child, extended=extended) for child in part.children)
        subtype = format_quoted(part.fields.get_content_subtype().upper().encode("ascii", "replace"))
        tail = b" %s %s NIL" % (_parameters(part), _disposition(part)) if extended else b""
        return b"(%s %s%s)" % (inner, subtype, tail)
    return b"(" + b" ".join(_single(part, extended=extended)) + b")"


def _single(part: MimePart, *, extended: bool) -> list[bytes]:
    main, _, subtype = part.content_type.partition("/")
    encoding = str(part.fields.get("content-transfer-encoding", "7BIT")).strip().upper()
    items = [
        format_quoted(main.upper().encode("ascii", "replace")),
        format_quoted(subtype.upper().encode("ascii", "replace")),
        _parameters(part),
        _header(part.fields, "content-id"),
        _header(part.fields, "content-description"),
        format_nstring(_bytes(encoding)),
        b"%d" % len(part.body),
    ]
    if part.is_message:
        child = part.children[0]
        items += [envelope(child), body_structure(child, extended=extended), b"%d" % part.body.count(b"\n")]
    elif main == "text":
        items.append(b"%d" % part.body.count(b"\n"))
    return [*items, b"NIL", _disposition(part), b"NIL"] if extended else items


def _parameters(part: MimePart) -> bytes:
    found = part.fields.get_params(unquote=True, header="content-type") or []
    return _pairs([(name, value) for name, value in found[1:]])


def _disposition(part: MimePart) -> bytes:
    kind = part.fields.get_content_disposition()
    if kind is None:
        return b"NIL"
    found = part.fields.get_params(unquote=True, header="content-disposition") or []
    return b"(%s %s)" % (format_nstring(_bytes(kind.upper())), _pairs([(name, value) for name, value in found[1:]]))


def _pairs(pairs: list[tuple[str, str]]) -> bytes:
    spelled = [format_nstring(_bytes(word)) for name, value in pairs for word in (name.upper(), _plain(value))]
    return b"(" + b" ".join(spelled) + b")" if spelled else b"NIL"


def _plain(value: object) -> str:
    return str(value[2]) if isinstance(value, tuple) else str(value)
