"""Receivers that still have to be told that a message which they got was erased."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Text

from email_ingestion.ledger.types import Moment

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Create the table, which older code leaves alone."""
    op.create_table(
        "erasure_notices",
        Column("email_id", Text, primary_key=True),
        Column("sink", Text, primary_key=True),
        Column("erased_at", Moment, nullable=False),
    )
