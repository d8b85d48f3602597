"""Decoded header fields and text of a message for SEARCH, computed only when a test needs them."""

from __future__ import annotations

from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.parser import BytesHeaderParser, BytesParser
from functools import cached_property
from typing import TYPE_CHECKING

from gmail_sandbox.message import Message, header_block

if TYPE_CHECKING:
    from email.message import Message as Parsed

    from gmail_sandbox.account import GmailAccount


class SearchableText:
    """One message, read lazily. All texts are case-folded."""

    def __init__(self, account: GmailAccount, message: Message) -> None:
        """Remember where the bytes are."""
        self._account, self._message = account, message

    @cached_property
    def _raw(self) -> bytes:
        return self._account.raw(self._message)

    @cached_property
    def _fields(self) -> Parsed:
        return BytesHeaderParser().parsebytes(header_block(self._raw))

    def has(self, name: str) -> bool:
        """Tell whether there is such a header field."""
        return name in self._fields

    def header(self, name: str) -> str:
        """Return all values of a header field, decoded."""
        return " ".join(_decoded(value) for value in self._fields.get_all(name, [])).casefold()

    def body(self) -> str:
        """Return the decoded text parts."""
        parsed = BytesParser().parsebytes(self._raw)
        parts = [part for part in parsed.walk() if part.get_content_maintype() == "text"]
        return "\n".join(_text_of(part) for part in parts).casefold()

    def text(self) -> str:
        """Return header and body."""
        head = " ".join(_decoded(value) for value in self._fields.values())
        return head.casefold() + "\n" + self.body()

    def has_attachment(self) -> bool:
        """Tell whether a part has a file name or is an attachment."""
        parsed = BytesParser().parsebytes(self._raw)
        return any(part.get_content_disposition() == "attachment" or part.get_filename() for part in parsed.walk())


def _decoded(value: object) -> str:
    try:
        return str(make_header(decode_header(str(value))))
    except (HeaderParseError, LookupError, UnicodeError, ValueError):
        return str(value)


def _text_of(part: Parsed) -> str:
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes):
        return ""
    try:
        return payload.decode(part.get_content_charset("utf-8"), "replace")
    except LookupError:
        return payload.decode("latin-1")
