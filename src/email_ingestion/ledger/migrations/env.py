"""What Alembic runs for each upgrade: on the connection, and inside the transaction, that `ledger.migrate` opened."""

from __future__ import annotations

from alembic import context

# Alembic believes SQLite cannot roll DDL back. It can, once BEGIN is ours (ledger/engine.py).
context.configure(
    connection=context.config.attributes["connection"], transactional_ddl=True, version_table="schema_revision"
)
context.run_migrations()
