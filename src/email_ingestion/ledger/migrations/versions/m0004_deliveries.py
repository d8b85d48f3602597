"""What the sinks beside the database still have to get, what they have, and the flags they are told of."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, ForeignKey, Integer, Text, text

from email_ingestion.ledger.types import Json, Moment

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Create the table; messages that are here already are owed to nobody."""
    op.add_column("emails", Column("flags", Json))
    op.create_table(
        "deliveries",
        Column("email_id", Text, ForeignKey("emails.email_id", ondelete="CASCADE"), primary_key=True),
        Column("sink", Text, primary_key=True),
        Column("state", Text, nullable=False),
        Column("due", Moment),
        Column("attempts", Integer, nullable=False),
        Column("holder", Text),
        Column("changed_at", Moment, nullable=False),
    )
    waiting = text("state = 'waiting'")
    op.create_index("deliveries_due", "deliveries", ["sink", "due"], sqlite_where=waiting, postgresql_where=waiting)
