"""Convert records to rows of the tables. Compression happens here, before the database is locked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import zstandard
from sqlalchemy import Engine

from email_ingestion.blobs import reference
from email_ingestion.ledger.model import Content, StoredEmail
from email_ingestion.records import PARSER_VERSION, Email

CHUNK = 500  # values in one IN (…): old SQLites take 999 in a statement
_ZSTD_LEVEL = 3
_T = TypeVar("_T")


def chunks(values: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """Divide values into as many as one IN (…) takes."""
    return (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))


@dataclass(frozen=True, slots=True)
class PreparedBatch:
    """A batch in the form in which it is written."""

    ordered: list[StoredEmail]
    rows: list[dict[str, Any]]
    packed: dict[str, list[dict[str, Any]]]
    now: datetime

    @staticmethod
    def from_emails(batch: Sequence[StoredEmail]) -> PreparedBatch:
        """Prepare messages in any order; of several with one identity only the first."""
        # In order of identity, so that two workers with overlapping batches wait for each other in one direction.
        first = {stored.email.email_id: stored for stored in reversed(batch)}
        ordered = [first[email_id] for email_id in sorted(first)]
        now = datetime.now(UTC)
        rows = [email_row(stored, now) for stored in ordered]
        packed = {stored.email.email_id: content_rows(stored.contents) for stored in ordered}
        return PreparedBatch(ordered, rows, packed, now)


def email_row(stored: StoredEmail, now: datetime) -> dict[str, Any]:
    """Return the row of `emails`."""
    email, envelope = stored.email, stored.email.envelope
    return {
        "email_id": email.email_id,
        "account": envelope.account,
        "mailbox": envelope.mailbox,
        "uidvalidity": envelope.uidvalidity,
        "uid": envelope.uid,
        "gm_msgid": envelope.gm_msgid,
        "gm_thrid": envelope.gm_thrid,
        "labels": list(envelope.labels),
        "message_id": email.message_id,
        "subject": email.subject,
        "from_addr": email.from_.addr if email.from_ else None,
        "from_name": email.from_.name if email.from_ else None,
        "to_addrs": [{"name": address.name, "addr": address.addr} for address in email.to],
        "date": email.date,
        "internaldate": envelope.internaldate,
        "size": envelope.size,
        "sha256": envelope.sha256,
        "text": email.text,
        "html": email.html,
        "headers": [list(header) for header in email.headers],
        "defects": list(email.defects),
        "raw_ref": stored.raw_ref,
        "processed_at": now,
        "flags": list(envelope.flags),
        "tags": list(email.tags),
        "priority": email.priority,
        "cc_addrs": [{"name": address.name, "addr": address.addr} for address in email.cc],
        "list_id": (email.mailing_list.list_id or "") if email.mailing_list else None,
        "auto_reply": email.auto_reply,
        "bounce": email.bounce is not None,
        **{name: getattr(email.verdicts, name, None) for name in ("spf", "dkim", "dmarc")},
        "parser_version": PARSER_VERSION,
        "retention_days": stored.retention_days,
    }


def attachment_rows(email: Email) -> list[dict[str, Any]]:
    """Return one row for each attachment."""
    return [
        {
            "email_id": email.email_id,
            "position": attachment.position,
            "filename": attachment.filename,
            "content_type": attachment.content_type,
            "size": attachment.size,
            "sha256": attachment.sha256,
            "content_ref": reference(attachment.sha256),
        }
        for attachment in email.attachments
    ]


def content_rows(contents: Iterable[Content]) -> list[dict[str, Any]]:
    """Return one row for each content, compressed."""
    compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)  # one for each call: threads cannot share it
    return [
        {"sha256": content.sha256, "size": len(content.data), "data": compressor.compress(content.data)}
        for content in contents
    ]


def unpack_content(data: bytes, size: int) -> bytes:
    """Return a content as it was before compression, empty where it is damaged.

    What a frame announces must be the size in the row, for the library makes room for it: a few bytes may announce
    terabytes.
    """
    try:
        if zstandard.frame_content_size(data) == size:
            return zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
    except (zstandard.ZstdError, MemoryError):
        pass
    return b""


def insert_of(engine: Engine) -> Any:
    """Return the dialect's `insert`, which supports ON CONFLICT; only the needed dialect is loaded."""
    if engine.dialect.name == "sqlite":
        from sqlalchemy.dialects.sqlite import insert  # noqa: PLC0415
    else:
        from sqlalchemy.dialects.postgresql import insert  # type: ignore[assignment]  # noqa: PLC0415
    return insert
