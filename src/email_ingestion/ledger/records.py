"""What the ledger takes and gives: a parsed message, the contents to keep beside it, and where it was found."""

from __future__ import annotations

from dataclasses import dataclass

from email_ingestion.records import Email, Envelope


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes to keep in the database itself."""

    sha256: str  # hex digest of `data`
    data: bytes


@dataclass(frozen=True, slots=True)
class StoredEmail:
    """A message for the ledger; what of it is not in `contents` already lies in the blob store."""

    email: Email
    raw_ref: str
    contents: tuple[Content, ...] = ()
    owed_to: tuple[str, ...] = ()  # the sinks beside the database that have to get it
    again: str | None = None  # the sink that is to get it once more: its dead letter was replayed


@dataclass(frozen=True, slots=True)
class Place:
    """Where on a server a message lies; an account's server has one message there, ever (RFC 3501, 2.3.1.1)."""

    mailbox: str
    uidvalidity: int
    uid: int


@dataclass(frozen=True, slots=True)
class Found:
    """What the ledger knows of a message beyond its bytes, which lie under `raw_ref`."""

    envelope: Envelope
    raw_ref: str
    tags: tuple[str, ...]
    priority: int | None  # None: it was recorded before there were routes
