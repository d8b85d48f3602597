"""Mail made to order for the suites of ledger and sinks."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

from email_ingestion.blobs import reference
from email_ingestion.ledger.model import Content, StoredEmail
from email_ingestion.records import Address, Attachment, Email, Envelope

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def raw_of(number: int) -> bytes:
    return f"Subject: letter {number}\r\n\r\nHello".encode()


def mail(number: int, *, account: str = "default", gm_msgid: int | None = None, mailbox: str = "INBOX",
         subject: str = "A letter", text: str = "Hello", sender: Address | None = None,
         message_id: str | None = None, attachments: tuple[bytes, ...] = ()) -> Email:  # fmt: skip
    """The `number`-th letter; an hour younger than the one before."""
    raw = raw_of(number)
    envelope = Envelope(
        account=account,
        mailbox=mailbox,
        uidvalidity=7,
        uid=number,
        gm_msgid=number if gm_msgid is None else gm_msgid,
        gm_thrid=number,
        labels=("\\Inbox", "Grüße"),
        flags=(),
        internaldate=EPOCH + timedelta(hours=number),
        size=len(raw),
        sha256=sha256(raw),
    )
    return Email(
        envelope=envelope,
        message_id=message_id or f"<{number}@example.org>",
        subject=subject,
        from_=sender,
        to=(Address("Ann", "ann@example.org"),),
        cc=(),
        bcc=(),
        reply_to=(),
        date=EPOCH,
        in_reply_to=None,
        references=(),
        text=text,
        html=None,
        headers=(("Subject", subject),),
        attachments=tuple(
            Attachment(position, f"{position}.bin", "application/octet-stream", len(data), sha256(data), data)
            for position, data in enumerate(attachments, 1)
        ),
        defects=(),
    )


def stored(email: Email) -> StoredEmail:
    """With its raw bytes and attachments inside the database."""
    raw = raw_of(email.envelope.uid)
    parts = tuple(Content(part.sha256, part.content) for part in email.attachments)
    return StoredEmail(email, reference(email.envelope.sha256), (Content(sha256(raw), raw), *parts))


def letters(*numbers: int) -> list[StoredEmail]:
    return [stored(mail(number)) for number in numbers]
