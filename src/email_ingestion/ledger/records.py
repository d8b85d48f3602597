"""What the ledger takes: a parsed message and the contents to keep beside it."""

from __future__ import annotations

from dataclasses import dataclass

from email_ingestion.email import Email


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
