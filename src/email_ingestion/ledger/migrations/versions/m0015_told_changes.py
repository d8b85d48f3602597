"""How far each sink was told of the change feed, and what it has not taken."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, Text

from email_ingestion.ledger.types import Moment

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Add the tables; a sink that is told of changes begins where the feed ends then."""
    op.create_table(
        "change_readers",
        Column("sink", Text, primary_key=True),
        Column("last_seq", BigInteger, nullable=False),
        Column("holder", Text),
        Column("until", Moment),
    )
    op.create_table(
        "held_changes",
        Column("sink", Text, primary_key=True),
        Column("seq", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=False),
        *(Column(name, Text, nullable=False) for name in ("email_id", "state")),
        Column("due", Moment),
        Column("attempts", Integer, nullable=False),
        Column("reason", Text),
    )
    op.create_index("held_changes_email_id", "held_changes", ["sink", "email_id"])
    op.create_index("held_changes_due", "held_changes", ["sink", "state", "due"])
