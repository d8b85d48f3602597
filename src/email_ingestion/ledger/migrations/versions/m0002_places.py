"""Other places at which delivered messages were found again: under a new UIDVALIDITY, after a move, as a copy."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, ForeignKey, Text

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "places",
        Column("account", Text, primary_key=True),
        Column("mailbox", Text, primary_key=True),
        Column("uidvalidity", BigInteger, primary_key=True),
        Column("uid", BigInteger, primary_key=True),
        Column("email_id", Text, ForeignKey("emails.email_id", ondelete="CASCADE"), nullable=False),
    )
    op.create_index("places_email_id", "places", ["email_id"])
