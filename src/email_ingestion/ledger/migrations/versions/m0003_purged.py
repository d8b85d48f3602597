"""Messages an operator purged from the dead letters: given up on purpose, so reconciliation leaves them alone."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Text

from email_ingestion.ledger.types import Moment

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "purged",
        Column("email_id", Text, primary_key=True),
        Column("purged_at", Moment, nullable=False),
    )
