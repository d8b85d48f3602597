"""What was erased and must not come back, by hashes, and the contents of it that are still to be removed."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Text

from email_ingestion.ledger.types import Moment

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Create the tables; older code does not know them, and `erase --reapply` makes good what it let in."""
    op.create_table(
        "erased",
        Column("tombstone", Text, primary_key=True),
        Column("erased_at", Moment, nullable=False),
    )
    op.create_table(
        "erased_contents",
        Column("sha256", Text, primary_key=True),
        Column("erased_at", Moment, nullable=False),
    )
