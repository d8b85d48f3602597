"""Messages and envelopes for the tests of parsing."""

from __future__ import annotations

from datetime import UTC, datetime

from email_ingestion.email import Email, Envelope


def envelope() -> Envelope:
    """Any envelope: parsing only passes it on."""
    return Envelope(
        account="me",
        mailbox="INBOX",
        uidvalidity=1,
        uid=1,
        gm_msgid=1,
        gm_thrid=1,
        labels=(),
        flags=(),
        internaldate=datetime(2024, 8, 5, tzinfo=UTC),
        size=0,
        sha256="0" * 64,
    )


def strings(email: Email) -> list[str]:
    """Every text of a record, wherever it is."""
    found = [email.subject, email.text, *email.references, *email.defects]
    found += [text for text in (email.message_id, email.in_reply_to, email.html) if text is not None]
    found += [text for field in email.headers for text in field]
    people = [email.from_] if email.from_ else []
    for one in (*people, *email.to, *email.cc, *email.bcc, *email.reply_to):
        found += [one.name, one.addr]
    for part in email.attachments:
        found += [part.content_type, part.filename or "", part.content_id or ""]
    return found
