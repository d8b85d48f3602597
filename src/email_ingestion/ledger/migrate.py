"""Create or upgrade the schema of a database, also when several processes start at once; there is no downgrade."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Column, Connection, Engine, MetaData, PrimaryKeyConstraint, String, Table, inspect, select

from email_ingestion.errors import ConfigurationError
from email_ingestion.ledger.database_errors import translate_open_errors
from email_ingestion.ledger.engine import describe_database, write_engine
from email_ingestion.ledger.fts_schema import FTS_STATEMENTS
from email_ingestion.ledger.tables import emails, metadata

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

# The newest revision. Alembic (14 MB, a quarter of a second) is loaded only where a database has an older one.
HEAD = "0006"
_alembic_version = Table(  # as Alembic makes it
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)

_ADVISORY_LOCK = 0x656D61696C  # any number, the same in every process

_alembic_lock = threading.Lock()  # Alembic's `context` is one per process


def migrate(engine: Engine) -> None:
    """Create the tables or run the missing revisions in one transaction.

    Raises ConfigurationError when the schema is newer than this code or cannot be written, SinkUnavailable when the
    database cannot be reached.
    """
    with _alembic_lock, translate_open_errors(describe_database(engine)), write_engine(engine).begin() as connection:
        _lock_schema(connection)
        current = _revision(connection)
        if current is None and not inspect(connection).has_table(emails.name):
            create(connection)
        elif current != HEAD:
            upgrade(connection, current)


def create(connection: Connection) -> None:
    """Create the newest schema in an empty database; a test compares it with the result of all revisions."""
    metadata.create_all(connection, checkfirst=False)
    for statement in FTS_STATEMENTS[connection.dialect.name]:
        connection.exec_driver_sql(statement)
    _alembic_version.create(connection)
    connection.execute(_alembic_version.insert().values(version_num=HEAD))


def upgrade(connection: Connection, current: str | None = None) -> None:
    """Run the revisions after `current`. Raises ConfigurationError for an unknown revision."""
    from alembic import command  # noqa: PLC0415 - see HEAD

    config, scripts = _scripts()
    _refuse_newer(current, scripts, describe_database(connection.engine))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def pending_revision(engine: Engine) -> str | None:
    """Return the revision that `migrate` would upgrade to; None when the database has it.

    Raises ConfigurationError when the schema is newer than this code.
    """
    with engine.connect() as connection:
        current = _revision(connection)
    if current == HEAD:
        return None
    _refuse_newer(current, _scripts()[1], describe_database(engine))
    return HEAD


def _revision(connection: Connection) -> str | None:
    """Return the revision that Alembic noted in the database; None before the first."""
    if not inspect(connection).has_table(_alembic_version.name):
        return None
    revision: str | None = connection.execute(select(_alembic_version.c.version_num)).scalar_one_or_none()
    return revision


def _scripts() -> tuple[Config, ScriptDirectory]:
    from alembic.config import Config  # noqa: PLC0415 - see HEAD
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    config = Config()
    here = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", here.replace("%", "%%"))
    return config, ScriptDirectory.from_config(config)


def _lock_schema(connection: Connection) -> None:
    """Take PostgreSQL's advisory lock; on SQLite, BEGIN IMMEDIATE already holds the write lock."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")


def _refuse_newer(current: str | None, scripts: ScriptDirectory, database: str) -> None:
    known = {script.revision for script in scripts.walk_revisions()}
    if current is not None and current not in known:
        raise ConfigurationError(
            f"the database {database} has schema {current}, which this version does not know: "
            "install the version that wrote it, or point DATABASE_URL elsewhere"
        )
