"""Tokens of the read API, and an index for conversations."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Text, UniqueConstraint, text

from email_ingestion.ledger.types import Moment

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Create the table and the index, which older code leaves alone."""
    op.create_table(
        "api_tokens",
        Column("token_id", Text, primary_key=True),
        Column("sha256", Text, nullable=False),
        Column("scope", Text, nullable=False),
        Column("account", Text),
        Column("created_by", Text, nullable=False),
        Column("created_at", Moment, nullable=False),
        Column("expires_at", Moment),
        Column("revoked_by", Text),
        Column("revoked_at", Moment),
        UniqueConstraint("sha256"),
    )
    has_thread = text("gm_thrid IS NOT NULL")
    op.create_index("emails_gm_thrid", "emails", ["gm_thrid"], sqlite_where=has_thread, postgresql_where=has_thread)
