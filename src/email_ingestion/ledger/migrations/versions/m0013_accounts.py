"""Accounts beside those of config/settings.toml."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Text

from email_ingestion.ledger.types import Moment

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Create the table, which older code leaves alone."""
    op.create_table(
        "accounts",
        Column("name", Text, primary_key=True),
        Column("state", Text, nullable=False),
        Column("settings", Text, nullable=False),
        Column("secrets", Text),
        Column("consent", Text),
        Column("changed_at", Moment, nullable=False),
        Column("changed_by", Text, nullable=False),
    )
