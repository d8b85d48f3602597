"""First tables: emails, attachments, contents, and the full-text search over subject, sender and text."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, ForeignKey, Integer, LargeBinary, Text

from email_ingestion.ledger.fts_schema import FTS_STATEMENTS
from email_ingestion.ledger.types import Json, Moment, Unsigned64

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create everything."""
    _create_emails()
    _create_attachments()
    op.create_table(
        "contents",
        Column("sha256", Text, primary_key=True),
        Column("size", BigInteger, nullable=False),
        Column("data", LargeBinary, nullable=False),
    )
    for statement in FTS_STATEMENTS[op.get_context().dialect.name]:
        op.execute(statement)


def _create_emails() -> None:
    op.create_table(
        "emails",
        Column("email_id", Text, primary_key=True),
        Column("account", Text, nullable=False),
        Column("mailbox", Text, nullable=False),
        Column("uidvalidity", BigInteger, nullable=False),
        Column("uid", BigInteger, nullable=False),
        Column("gm_msgid", Unsigned64),
        Column("gm_thrid", Unsigned64),
        Column("labels", Json, nullable=False),
        Column("message_id", Text),
        Column("subject", Text, nullable=False),
        Column("from_addr", Text),
        Column("from_name", Text),
        Column("to_addrs", Json, nullable=False),
        Column("date", Moment),
        Column("internaldate", Moment, nullable=False),
        Column("size", BigInteger, nullable=False),
        Column("sha256", Text, nullable=False),
        Column("text", Text, nullable=False),
        Column("html", Text),
        Column("headers", Json, nullable=False),
        Column("defects", Json, nullable=False),
        Column("raw_ref", Text, nullable=False),
        Column("processed_at", Moment, nullable=False),
    )
    op.create_index("emails_message_id", "emails", ["message_id"], postgresql_using="hash")
    op.create_index("emails_gm_msgid", "emails", ["account", "gm_msgid"])
    op.create_index("emails_uid", "emails", ["account", "mailbox", "uidvalidity", "uid"])
    op.create_index("emails_internaldate", "emails", ["internaldate"])


def _create_attachments() -> None:
    op.create_table(
        "attachments",
        Column("email_id", Text, ForeignKey("emails.email_id", ondelete="CASCADE"), primary_key=True),
        Column("position", Integer, primary_key=True),
        Column("filename", Text),
        Column("content_type", Text, nullable=False),
        Column("size", BigInteger, nullable=False),
        Column("sha256", Text, nullable=False),
        Column("content_ref", Text, nullable=False),
    )
