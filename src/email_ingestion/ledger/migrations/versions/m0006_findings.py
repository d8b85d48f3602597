"""What parsing finds and people ask for: who else got it, lists, machines' mail, what the receiving Gmail found."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Boolean, Column, Text

from email_ingestion.ledger.types import Json

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the columns; of what is here already they are not known."""
    kinds = {"list_id": Text, "auto_reply": Boolean, "bounce": Boolean, "spf": Text, "dkim": Text, "dmarc": Text}
    op.add_column("emails", Column("cc_addrs", Json))
    for name, kind in kinds.items():
        op.add_column("emails", Column(name, kind))
