"""For how long mail is kept by its route, and what is held whatever anybody says."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Integer, Text, text

from email_ingestion.ledger.types import Moment

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add the column, which older code leaves empty, and the table."""
    op.add_column("emails", Column("retention_days", Integer))
    is_given = text("retention_days IS NOT NULL")
    columns = ["retention_days", "internaldate"]
    op.create_index("emails_retention", "emails", columns, sqlite_where=is_given, postgresql_where=is_given)
    op.create_table(
        "holds",
        Column("hold_id", Text, primary_key=True),
        Column("kind", Text, nullable=False),
        Column("value", Text, nullable=False),
        Column("account", Text),
        Column("reason", Text, nullable=False),
        Column("created_by", Text, nullable=False),
        Column("created_at", Moment, nullable=False),
        Column("released_by", Text),
        Column("released_at", Moment),
    )
