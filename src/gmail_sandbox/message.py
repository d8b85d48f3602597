"""One stored message as the sandbox keeps it: identity, location, labels and flags, without its bytes."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

# Label and flag sets repeat in a large mailbox; sharing them keeps a message at a few hundred bytes.
_interned: dict[frozenset[str], frozenset[str]] = {}


def interned(values: frozenset[str]) -> frozenset[str]:
    """Return the one copy kept of an equal set."""
    return _interned.setdefault(values, values)


class MessageLocation(enum.StrEnum):
    """Gmail's three physical stores; every other mailbox is a view on the first."""

    ALL = "all"
    SPAM = "spam"
    TRASH = "trash"


@dataclass(slots=True)
class Message:
    """A message without its bytes. `internaldate` is in epoch milliseconds."""

    msgid: int
    thrid: int
    internaldate: int
    size: int
    flags: frozenset[str]
    labels: frozenset[str]
    location: MessageLocation
    message_id: str
    modseq: int
    recipe: int | None = None  # index for generated mail; None when the bytes are in the state


_FLAG = re.compile(r"\\?[^\x00-\x20(){%*\"\\\]\x7f-\uffff]+")


class BadFlag(ValueError):
    """A flag that IMAP could not carry."""


def check_flags(flags: Iterable[str]) -> None:
    """Raise BadFlag for a flag that is no atom (RFC 3501 section 9)."""
    for flag in flags:
        if not _FLAG.fullmatch(flag):
            raise BadFlag(f"{flag!r} cannot be a flag")


class ThreadHeaders(NamedTuple):
    """The header fields that decide merging and threading."""

    message_id: str
    references: tuple[str, ...]


_KEY_FIELD = re.compile(rb"^(message-id|in-reply-to|references)[ \t]*:(.*)$", re.IGNORECASE | re.MULTILINE)
_FOLD = re.compile(rb"\r?\n[ \t]+")
_ID = re.compile(rb"<[^<>\s]+>")
_HEAD_END = re.compile(rb"\r?\n\r?\n")


def header_block(raw: bytes) -> bytes:
    """Return the header with its terminating blank line, or all of `raw` when there is none."""
    if raw[:2] == b"\r\n":
        return raw[:2]
    if raw[:1] == b"\n":
        return raw[:1]
    end = _HEAD_END.search(raw)
    return raw[: end.end()] if end else raw


def read_thread_headers(raw: bytes) -> ThreadHeaders:
    """Read Message-ID, In-Reply-To and References from a raw message."""
    own = ""
    references: list[str] = []
    for name, value in _KEY_FIELD.findall(_FOLD.sub(b" ", header_block(raw))):
        ids = [found.decode("latin-1") for found in _ID.findall(value)]
        if name.lower() == b"message-id":
            own = own or (ids[0] if ids else "")
        else:
            references += ids
    return ThreadHeaders(own, tuple(references))
