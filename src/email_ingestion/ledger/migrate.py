"""Brings a database to the schema of this code, also when several processes start at once; never goes back."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, inspect

from email_ingestion.errors import ConfigurationError
from email_ingestion.ledger.engine import place, writing
from email_ingestion.ledger.failures import while_opening

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

# The newest revision. Alembic (14 MB, a quarter of a second) is loaded only where a database is not at it.
HEAD = "0006"

_ADVISORY_LOCK = 0x656D61696C  # any number, the same in every process

_alembic = threading.Lock()  # Alembic's `context` is one per process


def migrate(engine: Engine) -> None:
    """Run the missing revisions in one transaction; return at once when there are none.

    Raises ConfigurationError when the database is ahead of this code or cannot be written, SinkUnavailable when it
    cannot be reached.
    """
    with _alembic, while_opening(place(engine)), writing(engine).begin() as connection:
        _wait_for_our_turn(connection)
        current = _revision(connection)
        if current == HEAD:
            return
        from alembic import command  # noqa: PLC0415 - see HEAD

        config, scripts = _scripts()
        _refuse_newer(current, scripts, place(engine))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def pending_revision(engine: Engine) -> str | None:
    """The revision `migrate` would bring the database to, None when it is there; ConfigurationError when beyond."""
    with engine.connect() as connection:
        current = _revision(connection)
    if current == HEAD:
        return None
    _refuse_newer(current, _scripts()[1], place(engine))
    return HEAD


def _revision(connection: Connection) -> str | None:
    """What Alembic noted in the database; None before it was there."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    noted = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one_or_none()
    return None if noted is None else str(noted)


def _scripts() -> tuple[Config, ScriptDirectory]:
    from alembic.config import Config  # noqa: PLC0415 - see HEAD
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    config = Config()
    here = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", here.replace("%", "%%"))
    return config, ScriptDirectory.from_config(config)


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
