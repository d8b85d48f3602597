"""Parse the MIME structure of broken or unusual mail with the standard library, and keep it from quadratic work."""

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
_BASE64_DEFECTS: Final = (
    errors.InvalidBase64CharactersDefect,
    errors.InvalidBase64LengthDefect,
    errors.InvalidBase64PaddingDefect,
)


class _OpaqueMessage(Message):
    """A part whose nested messages are not parsed: their bytes are an attachment, and parsing them has no limit."""

    def get_content_type(self) -> str:
        content_type = super().get_content_type()
        return "application/octet-stream" if content_type.startswith("message/") else content_type


class _TooManyParts(Exception):
    """Stops the parser; the tree that it has built so far is consistent."""


class _PartFactory:
    """Creates the parts for the parser, up to the limit, and keeps them in order."""

    def __init__(self) -> None:
        self.parts: list[_OpaqueMessage] = []

    def __call__(self, policy: Policy[Any] = compat32) -> _OpaqueMessage:
        if len(self.parts) > limits.PARTS + limits.STDLIB_MULTIPARTS:
            raise _TooManyParts
        self.parts.append(_OpaqueMessage(policy))
        return self.parts[-1]


def parse_tree(source: bytes, defects: Defects) -> Part | None:
    """Return the tree of `source`; None when the parser fails, which it should not."""
    try:
        return _StdlibTreeBuilder(source, defects).build(
            _run_parser(_limit_size(source, defects), defects), "text/plain", 0
        )
    except Exception:  # noqa: BLE001 - it has raised KeyError, IndexError, RecursionError, … on hostile mail
        return None


def _run_parser(source: bytes, defects: Defects) -> _OpaqueMessage:
    parser = BytesFeedParser(factory := _PartFactory())
    try:
        parser.feed(source)
        parser.close()
    except _TooManyParts:
        defects.note(Defect.MIME_PARTS)
    return factory.parts[1]  # the parser makes one before it, to learn whether the factory takes a policy


def _limit_size(source: bytes, defects: Defects) -> bytes:
    """Cut the source to a size that the parser reads in bounded time: it tries every open boundary on every line."""
    starts = [match.start() for match in _BOUNDARY.finditer(source.lower())]
    if len(starts) > limits.STDLIB_MULTIPARTS:
        defects.note(Defect.MIME_TRUNCATED)
        source = source[: starts[limits.STDLIB_MULTIPARTS]]
    lines = limits.STDLIB_LINE_WORK // (1 + min(len(starts), limits.STDLIB_MULTIPARTS))
    while source.count(b"\n") > lines:
        defects.note(Defect.MIME_TRUNCATED)
        source = source[: len(source) // 2]
    return source


class _StdlibTreeBuilder:
    """Builds one tree and counts its parts."""

    def __init__(self, source: bytes, defects: Defects) -> None:
        self._codec = charsets.declared_codec(source)
        self._defects = defects
        self._parts = 0

    def build(self, message: Message, default_type: str, depth: int) -> Part:
        part = describe(self._content_fields(message), self._defects, default_type)
        payload = message.get_payload()
        if isinstance(payload, list):
            part.children = self._build_children(payload, part, depth)
        else:
            part.content = self._decode_content(message, part)
            self._demote_multipart(part)
        return part

    def _build_children(self, payload: list[Any], part: Part, depth: int) -> list[Part]:
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
            children.append(self.build(child, default_type, depth + 1))
        return children

    def _demote_multipart(self, part: Part) -> None:
        """Treat a multipart without a usable boundary as plain text (RFC 2049, section 2)."""
        if part.is_multipart:
            self._defects.note(Defect.MIME_BOUNDARY)
            part.content_type = "text/plain"

    def _content_fields(self, message: Message) -> dict[str, str]:
        fields: dict[str, str] = {}
        for name, value in message.raw_items():
            if name.lower().startswith("content-") and name.lower() not in fields:
                raw = headers.unfold(str(value).encode("ascii", "surrogateescape"))
                fields[name.lower()] = headers.decode_raw(raw, self._codec, self._defects)
        return fields

    def _decode_content(self, message: Message, part: Part) -> bytes:
        del message["content-transfer-encoding"]  # it compares the whole value: "base64 (comment)" would stay encoded
        if part.encoding:
            message["content-transfer-encoding"] = part.encoding
        content = message.get_payload(decode=True)
        if any(isinstance(defect, _BASE64_DEFECTS) for defect in message.defects):
            self._defects.note(Defect.TRANSFER_INVALID)
            content = _salvage_base64(str(message.get_payload()))
        return content if isinstance(content, bytes) else b""


def _salvage_base64(base64: str) -> bytes:
    """Decode damaged base64 as far as possible: drop lines that are not base64 (a list's footer), then stray signs."""
    lines = [line.strip() for line in base64.split("\n")]
    clean = "".join(line for line in lines if _BASE64_LINE.fullmatch(line)) or _NOT_BASE64.sub("", base64)
    clean = clean.rstrip("=")
    return binascii.a2b_base64(clean[: len(clean) - (len(clean) % 4 == 1)] + "===")
