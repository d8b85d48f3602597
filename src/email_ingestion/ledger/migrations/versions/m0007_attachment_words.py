"""Attachments are found by the words of their file names."""

from __future__ import annotations

from alembic import op

from email_ingestion.ledger.fts_schema import ATTACHMENT_FTS_STATEMENTS

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Create the index; SQLite's does not fill itself with the names that are here already."""
    dialect = op.get_context().dialect.name
    for statement in ATTACHMENT_FTS_STATEMENTS[dialect]:
        op.execute(statement)
    if dialect == "sqlite":
        op.execute(
            "INSERT INTO attachment_words (rowid, filename) SELECT (doc << 20) + position, filename"
            " FROM attachments JOIN email_docs USING (email_id) WHERE filename IS NOT NULL"
        )
