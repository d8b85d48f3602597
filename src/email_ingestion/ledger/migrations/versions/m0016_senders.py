"""Mail of a sender is found without looking at every message."""

from __future__ import annotations

from alembic import op

from email_ingestion.ledger.sender_index import SENDER_INDEX_STATEMENTS

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Create the index."""
    op.execute(SENDER_INDEX_STATEMENTS[op.get_context().dialect.name])
