"""Brings a database to the schema of this code, also when several processes start at once; never goes back."""

from __future__ import annotations

import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

from email_ingestion.errors import ConfigurationError
from email_ingestion.ledger.engine import place, writing
from email_ingestion.ledger.failures import while_opening

_ADVISORY_LOCK = 0x656D61696C  # any number, the same in every process

_alembic = threading.Lock()  # Alembic's `context` is one per process


def migrate(engine: Engine) -> None:
    """Run the missing revisions in one transaction; return at once when there are none.

    Raises ConfigurationError when the database is ahead of this code or cannot be written, SinkUnavailable when it
    cannot be reached.
    """
    config = _config()
    scripts = ScriptDirectory.from_config(config)
    with _alembic, while_opening(place(engine)), writing(engine).begin() as connection:
        _wait_for_our_turn(connection)
        current = MigrationContext.configure(connection).get_current_revision()
        if current == scripts.get_current_head():
            return
        _refuse_newer(current, scripts, place(engine))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def pending_revision(engine: Engine) -> str | None:
    """The revision `migrate` would bring the database to, None when it is there; ConfigurationError when beyond."""
    scripts = ScriptDirectory.from_config(_config())
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    if current == scripts.get_current_head():
        return None
    _refuse_newer(current, scripts, place(engine))
    return scripts.get_current_head()


def _config() -> Config:
    config = Config()
    here = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", here.replace("%", "%%"))
    return config


def _wait_for_our_turn(connection: Connection) -> None:
    """On SQLite, BEGIN IMMEDIATE has done that."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")


def _refuse_newer(current: str | None, scripts: ScriptDirectory, database: str) -> None:
    known = {script.revision for script in scripts.walk_revisions()}
    if current is not None and current not in known:
        raise ConfigurationError(
            f"the database {database} has schema {current}, which this version does not know: "
            "install the version that wrote it, or point DATABASE_URL elsewhere"
        )
