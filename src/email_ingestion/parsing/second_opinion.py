"""The structure of broken or unusual mail through the standard library's parser, kept from quadratic work."""

from __future__ import annotations

import binascii
import re
from email import errors
from email.feedparser import BytesFeedParser
from email.message import Message
from email.policy import Policy, compat32
from typing import Any, Final

from email_ingestion.parsing import charsets, headers, limits
from email_ingestion.parsing.defects import Defect, Defects
from email_ingestion.parsing.part import Part, describe

_BOUNDARY: Final = re.compile(rb"boundary[*\d\s]*=")
_BASE64_LINE: Final = re.compile(r"[A-Za-z0-9+/]+=*")
_NOT_BASE64: Final = re.compile(r"[^A-Za-z0-9+/]+")
_DAMAGED: Final = (
    errors.InvalidBase64CharactersDefect,
    errors.InvalidBase64LengthDefect,
    errors.InvalidBase64PaddingDefect,
)


class _Closed(Message):
    """A part whose nested messages stay closed: their bytes are an attachment, and opening them is not bounded."""

    def get_content_type(self) -> str:
        content_type = super().get_content_type()
        return "application/octet-stream" if content_type.startswith("message/") else content_type


class _TooManyParts(Exception):
    """Stops the parser; what it has read so far hangs together."""


class _Factory:
    """Makes the parts for the parser, up to the limit, and knows the first one of the tree."""

    def __init__(self) -> None:
        self.made: list[_Closed] = []

    def __call__(self, policy: Policy[Any] = compat32) -> _Closed:
        if len(self.made) > limits.PARTS + limits.SECOND_MULTIPARTS:
            raise _TooManyParts
        self.made.append(_Closed(policy))
        return self.made[-1]


def read(source: bytes, defects: Defects) -> Part | None:
    """The tree of `source`, None when the parser fails, which it should not."""
    try:
        return _Reader(source, defects).read(_parsed(_bounded(source, defects), defects), "text/plain", 0)
    except Exception:  # noqa: BLE001 - it has raised KeyError, IndexError, RecursionError, … on hostile mail
        return None


def _parsed(source: bytes, defects: Defects) -> _Closed:
    parser = BytesFeedParser(factory := _Factory())
    try:
        parser.feed(source)
        parser.close()
    except _TooManyParts:
        defects.note(Defect.MIME_PARTS)
    return factory.made[1]  # the parser makes one before it, to learn whether the factory takes a policy


def _bounded(source: bytes, defects: Defects) -> bytes:
    """The source cut to what the parser reads in bounded time: it tries every open boundary on every line."""
    starts = [match.start() for match in _BOUNDARY.finditer(source.lower())]
    if len(starts) > limits.SECOND_MULTIPARTS:
        defects.note(Defect.MIME_TRUNCATED)
        source = source[: starts[limits.SECOND_MULTIPARTS]]
    lines = limits.SECOND_LINE_WORK // (1 + min(len(starts), limits.SECOND_MULTIPARTS))
    while source.count(b"\n") > lines:
        defects.note(Defect.MIME_TRUNCATED)
        source = source[: len(source) // 2]
    return source


class _Reader:
    """One tree, with the number of parts taken so far."""

    def __init__(self, source: bytes, defects: Defects) -> None:
        self._codec = charsets.declared_codec(source)
        self._defects = defects
        self._parts = 0

    def read(self, message: Message, default_type: str, depth: int) -> Part:
        part = describe(self._fields(message), self._defects, default_type)
        payload = message.get_payload()
        if isinstance(payload, list):
            part.children = self._children(payload, part, depth)
        else:
            part.content = self._content(message, part)
            self._close_multipart(part)
        return part

    def _children(self, payload: list[Any], part: Part, depth: int) -> list[Part]:
        if depth >= limits.DEPTH:
            self._defects.note(Defect.MIME_DEPTH)
            return []
        default_type = "message/rfc822" if part.content_type == "multipart/digest" else "text/plain"
        children: list[Part] = []
        for child in payload:
            if self._parts >= limits.PARTS:
                self._defects.note(Defect.MIME_PARTS)
                break
            self._parts += 1
            children.append(self.read(child, default_type, depth + 1))
        return children

    def _close_multipart(self, part: Part) -> None:
        """A multipart without a usable boundary is shown as the text it is (RFC 2049, section 2)."""
        if part.is_multipart:
            self._defects.note(Defect.MIME_BOUNDARY)
            part.content_type = "text/plain"

    def _fields(self, message: Message) -> dict[str, str]:
        fields: dict[str, str] = {}
        for name, value in message.raw_items():
            if name.lower().startswith("content-") and name.lower() not in fields:
                raw = headers.unfold(str(value).encode("ascii", "surrogateescape"))
                fields[name.lower()] = headers.text(raw, self._codec, self._defects)
        return fields

    def _content(self, message: Message, part: Part) -> bytes:
        del message["content-transfer-encoding"]  # it compares the whole value: "base64 (comment)" would stay encoded
        if part.encoding:
            message["content-transfer-encoding"] = part.encoding
        content = message.get_payload(decode=True)
        if any(isinstance(defect, _DAMAGED) for defect in message.defects):
            self._defects.note(Defect.TRANSFER_INVALID)
            content = _salvaged(str(message.get_payload()))
        return content if isinstance(content, bytes) else b""


def _salvaged(base64: str) -> bytes:
    """What can be decoded of damaged base64: lines that are none (a list's footer) are left out, then stray signs."""
    lines = [line.strip() for line in base64.split("\n")]
    clean = "".join(line for line in lines if _BASE64_LINE.fullmatch(line)) or _NOT_BASE64.sub("", base64)
    clean = clean.rstrip("=")
    return binascii.a2b_base64(clean[: len(clean) - (len(clean) % 4 == 1)] + "===")
