"""The database of delivered messages: what is in it was delivered, what is not was not; it knows no Redis and no IMAP.

    emails        one row for each identity; its primary key is what makes an effect happen once
    attachments   the parts of each message, by reference
    places        where else, on its server, a message was found again
    purged        identities an operator gave up, by purging their dead letters
    contents      raw messages and attachments up to the threshold, by their SHA-256, zstd-compressed
    deliveries    what each further sink is owed, and what it has

A message is written in one transaction, and only its `deliveries` change afterwards.
"""

from __future__ import annotations

from email_ingestion.ledger.checkup import ledger_mark, look_at
from email_ingestion.ledger.copy import Copied, bring_back, check_copy, copy_ledger
from email_ingestion.ledger.outbox import Backlog, Claim, Outbox, Owed
from email_ingestion.ledger.records import Content, Found, Place, StoredEmail
from email_ingestion.ledger.search import Hit
from email_ingestion.ledger.store import Ledger, content_of, open_ledger

__all__ = [
    "Backlog",
    "Claim",
    "Content",
    "Copied",
    "Found",
    "Hit",
    "Ledger",
    "Outbox",
    "Owed",
    "Place",
    "StoredEmail",
    "bring_back",
    "check_copy",
    "content_of",
    "copy_ledger",
    "ledger_mark",
    "look_at",
    "open_ledger",
]
