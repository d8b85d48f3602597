"""What routes said of a message: its tags and its priority."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Integer

from email_ingestion.ledger.types import Json

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the columns; what is here already was never routed."""
    op.add_column("emails", Column("tags", Json))
    op.add_column("emails", Column("priority", Integer))
