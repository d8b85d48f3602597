"""How a database gets from one schema to the next: Alembic revisions, run by `ledger.migrate`."""
