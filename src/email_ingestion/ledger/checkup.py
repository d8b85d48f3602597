"""A look at the ledger from outside: nothing is made, migrated or changed."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine

from email_ingestion.ledger.engine import check_server, open_engine, place
from email_ingestion.ledger.failures import while_opening
from email_ingestion.ledger.migrate import pending_revision
from email_ingestion.ledger.store import Ledger


def look_at(url: str) -> str:
    """What there is, in words.

    Raises ConfigurationError when a setting or a permission is wrong or the schema is newer than this code,
    SinkUnavailable when the database takes nothing now.
    """
    engine = open_engine(url)
    try:
        file = _file(engine)
        if file and not file.exists():
            return f"{file} is not there yet: the worker makes it"
        check_server(engine)
        with while_opening(place(engine)):
            behind = pending_revision(engine)
        ledger = Ledger(engine)
        ledger.ping()
        if behind:
            return f"{place(engine)} takes writes; the next start brings its schema to {behind}"
        return f"{place(engine)} takes writes and holds {ledger.count():,} messages"
    finally:
        engine.dispose()


def _file(engine: Engine) -> Path | None:
    return Path(engine.url.database or "") if engine.dialect.name == "sqlite" else None
