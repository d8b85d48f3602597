"""The change feed, and when a message was found to be gone from its server."""

from __future__ import annotations

from typing import Any

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, Text, text

from email_ingestion.ledger.types import Json, Moment

revision = "0014"
down_revision = "0013"

_SEQUENCE = BigInteger().with_variant(Integer(), "sqlite")


def upgrade() -> None:
    """Add the tables and the column; what older code records has no change, and `changes` begins with the upgrade."""
    op.add_column("emails", Column("deleted_at", Moment))
    is_deleted = text("deleted_at IS NOT NULL")
    place = ["account", "mailbox", "uidvalidity", "uid"]
    op.create_index("emails_deleted", "emails", place, sqlite_where=is_deleted, postgresql_where=is_deleted)
    op.create_table("changes", Column("seq", _SEQUENCE, primary_key=True, autoincrement=False), *_described())
    has_details = text("details IS NOT NULL")
    op.create_index("changes_details", "changes", ["email_id"], sqlite_where=has_details, postgresql_where=has_details)
    op.create_table("change_arrivals", Column("arrival", _SEQUENCE, primary_key=True), *_described())
    op.create_table(
        "change_feed",
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("last_seq", BigInteger, nullable=False),
        Column("removed_to", BigInteger, nullable=False),
    )


def _described() -> list[Column[Any]]:
    return [
        Column("at", Moment, nullable=False),
        *(Column(name, Text, nullable=False) for name in ("kind", "account", "email_id")),
        Column("details", Json),
    ]
