"""Builds raw messages byte by byte, so that the same seed gives the same mailbox on every Python."""

from __future__ import annotations

import base64
import quopri
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import quote

if TYPE_CHECKING:
    from datetime import datetime

Headers: TypeAlias = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class MimeBody:
    """A MIME entity without the headers of the message."""

    headers: tuple[tuple[str, str], ...]
    content: bytes = field(repr=False)


def text(value: str, subtype: str = "plain", charset: str = "utf-8", encoding: str = "quoted-printable") -> MimeBody:
    """Return a text part."""
    data = value.replace("\n", "\r\n").encode(charset, "replace")
    if encoding == "base64":
        data = _lines(data)
    elif encoding == "quoted-printable":
        data = quopri.encodestring(data.replace(b"\r\n", b"\n")).replace(b"\n", b"\r\n")
    headers = (("Content-Type", f'text/{subtype}; charset="{charset}"'), ("Content-Transfer-Encoding", encoding))
    return MimeBody(headers, data)


def attachment(data: bytes, content_type: str, name: str, *, cid: str = "") -> MimeBody:
    """Return a base64 part; a name that is not ASCII is encoded as RFC 2231 wants."""
    disposition = "inline" if cid else "attachment"
    ascii_only = name.isascii()
    parameter = f'filename="{name}"' if ascii_only else f"filename*=utf-8''{quote(name)}"
    headers = [
        ("Content-Type", f'{content_type}; name="{name}"' if ascii_only else content_type),
        ("Content-Disposition", f"{disposition}; {parameter}"),
        ("Content-Transfer-Encoding", "base64"),
    ]
    if cid:
        headers.append(("Content-ID", f"<{cid}>"))
    return MimeBody(tuple(headers), _lines(data))


def entity(content_type: str, data: bytes) -> MimeBody:
    """Return a part that is sent as it is."""
    return MimeBody((("Content-Type", content_type),), data)


def multipart(kind: str, boundary: str, parts: Iterable[MimeBody]) -> MimeBody:
    """Return the parts joined under a boundary."""
    content = b"".join(f"--{boundary}\r\n".encode() + _join(part.headers, part.content) + b"\r\n" for part in parts)
    header = ("Content-Type", f'multipart/{kind}; boundary="{boundary}"')
    return MimeBody((header,), content + f"--{boundary}--\r\n".encode())


def message(headers: Headers, body: MimeBody) -> bytes:
    """Return a whole message."""
    return _join((*headers, ("MIME-Version", "1.0"), *body.headers), body.content)


def _join(headers: Headers, content: bytes) -> bytes:
    head = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return head.encode("utf-8", "surrogateescape") + b"\r\n" + content


def _lines(data: bytes) -> bytes:
    encoded = base64.b64encode(data).decode("ascii")
    return "".join(encoded[at : at + 76] + "\r\n" for at in range(0, len(encoded), 76)).encode("ascii")


def encoded_word(value: str, charset: str) -> str:
    """Return an RFC 2047 encoded word."""
    data = base64.b64encode(value.encode(charset)).decode("ascii")
    return f"=?{charset}?B?{data}?="


def date(when: datetime) -> str:
    """Return an RFC 5322 date, whatever the locale."""
    days = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
    months = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
    return f"{days[when.weekday()]}, {when.day:02} {months[when.month - 1]} {when:%Y %H:%M:%S} +0000"
