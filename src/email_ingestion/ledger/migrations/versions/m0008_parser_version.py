"""Which parser made a record, so that what an older one made can be found and made again."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Integer, text

from email_ingestion.ledger.fts_schema import UPDATE_FTS_STATEMENTS

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the column, which older code leaves at 0, and keep SQLite's index in step when a record changes."""
    op.add_column("emails", Column("parser_version", Integer, nullable=False, server_default=text("0")))
    op.create_index("emails_parser_version", "emails", ["parser_version"])
    for statement in UPDATE_FTS_STATEMENTS[op.get_context().dialect.name]:
        op.execute(statement)
