"""Create or upgrade the schema of a database, also when several processes start at once; and let older code use it.

Revisions only add. So two tables tell of a schema: `schema_revision` has the newest revision that was run, and
`alembic_version`, the only one that version 0.1.0 knows, has the oldest revision whose code can use this database.
Code that knows neither the first nor a later one goes by the second: it uses a newer schema as it is.
"""

from __future__ import annotations

import secrets
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    inspect,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError

from email_ingestion.errors import ConfigurationError, SinkUnavailable
from email_ingestion.ledger.database_errors import translate_open_errors
from email_ingestion.ledger.engine import STATEMENT_SECONDS, describe_database, write_engine
from email_ingestion.ledger.fts_schema import ATTACHMENT_FTS_STATEMENTS, FTS_STATEMENTS, UPDATE_FTS_STATEMENTS
from email_ingestion.ledger.sender_index import SENDER_INDEX_STATEMENTS
from email_ingestion.ledger.tables import emails, metadata

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

# The newest revision. Alembic (14 MB, a quarter of a second) is loaded only where a database has an older one.
HEAD = "0016"
# The oldest revision whose code can use a database of the newest. A revision that is not additive must be named here.
COMPATIBLE_FROM = "0006"
RELEASES = {"0.1.0": "0006", "0.2.0": "0016"}  # the revision that a release makes


def _version_table(name: str) -> Table:
    """Return a table as Alembic makes it."""
    column = Column("version_num", String(32), nullable=False)
    return Table(name, MetaData(), column, PrimaryKeyConstraint("version_num", name=f"{name}_pkc"))


_schema_revision = _version_table("schema_revision")
_alembic_version = _version_table("alembic_version")

_LOCK_NOT_AVAILABLE = "55P03"
_ADVISORY_LOCK = 0x656D61696C  # any number, the same in every process

_alembic_lock = threading.Lock()  # Alembic's `context` is one per process


def migrate(engine: Engine) -> None:
    """Create the tables or run the missing revisions in one transaction; a newer compatible schema stays as it is.

    Only an upgrade may take as long as it likes. Raises ConfigurationError when the schema is newer than this code can
    use or cannot be written, SinkUnavailable when the database cannot be reached, or another process changes it.
    """
    limited = engine.execution_options(seconds=STATEMENT_SECONDS)
    with _alembic_lock, translate_open_errors(describe_database(engine)):
        with write_engine(limited).begin() as connection:
            _lock_schema(connection)
            current = _revision(connection)
            if current is None and not inspect(connection).has_table(emails.name):
                create(connection)
                return
            if current == HEAD or _is_newer(connection, current):
                return
        with write_engine(engine).begin() as connection:
            _lock_schema(connection)
            current = _revision(connection)
            if current != HEAD and not _is_newer(connection, current):
                upgrade(connection, current)


def has_schema(engine: Engine) -> bool:
    """Tell whether somebody made our tables in the database. Raises SinkUnavailable when it cannot be reached."""
    with translate_open_errors(describe_database(engine)), engine.connect() as connection:
        return _revision(connection) is not None or inspect(connection).has_table(emails.name)


def create(connection: Connection) -> None:
    """Create the newest schema in an empty database; a test compares it with the result of all revisions."""
    metadata.create_all(connection, checkfirst=False)
    dialect = connection.dialect.name
    if dialect == "sqlite":  # tells it from one that is made anew in its place
        connection.exec_driver_sql(f"PRAGMA application_id = {secrets.randbits(31) | 1}")
    for statement in (*FTS_STATEMENTS[dialect], *ATTACHMENT_FTS_STATEMENTS[dialect], *UPDATE_FTS_STATEMENTS[dialect]):
        connection.exec_driver_sql(statement)
    connection.exec_driver_sql(SENDER_INDEX_STATEMENTS[dialect])
    for table, revision in ((_schema_revision, HEAD), (_alembic_version, COMPATIBLE_FROM)):
        table.create(connection)
        connection.execute(table.insert().values(version_num=revision))


def upgrade(connection: Connection, current: str | None = None, target: str = "head") -> None:
    """Run the revisions after `current` up to `target`."""
    from alembic import command  # noqa: PLC0415 - see HEAD

    config = _scripts()[0]
    config.attributes["connection"] = connection
    if current is not None:
        _note_revision(connection, current)
    command.upgrade(config, target)
    _alembic_version.create(connection, checkfirst=True)
    _set_compatible_from(connection, COMPATIBLE_FROM if target == "head" else target)


def downgrade(engine: Engine, revision: str) -> str | None:
    """Let code of an older `revision` use the database, by the mark it reads; nothing is dropped, nothing is lost.

    Returns the mark that the database had; None when there is no database yet. Raises ConfigurationError when a
    newer version wrote the schema.
    """
    with translate_open_errors(describe_database(engine)), write_engine(engine).begin() as connection:
        _lock_schema(connection)
        current = _revision(connection)
        if current is None:
            return None
        before = _compatible_from(connection)
        if current not in known_revisions():
            raise ConfigurationError(
                f"the database {describe_database(engine)} has schema {current}, of a later version than this: only "
                "that one can mark it for older code"
            )
        _note_revision(connection, current)
        _set_compatible_from(connection, min(revision, current))
        return before


def _note_revision(connection: Connection, current: str) -> None:
    """Make the table of the newest revision where version 0.1.0 made the database; else it is there."""
    _schema_revision.create(connection, checkfirst=True)
    if connection.execute(select(_schema_revision.c.version_num)).first() is None:
        connection.execute(_schema_revision.insert().values(version_num=current))


def pending_revision(engine: Engine) -> str | None:
    """Return the revision that `migrate` would upgrade to; None when the database has it, or a newer compatible one.

    Raises ConfigurationError when the schema is newer than this code can use.
    """
    with engine.execution_options(seconds=STATEMENT_SECONDS).connect() as connection:
        current = _revision(connection)
        return None if current == HEAD or _is_newer(connection, current) else HEAD


def _revision(connection: Connection) -> str | None:
    """Return the newest revision that was run on the database; None before the first."""
    tables = inspect(connection)
    for table in (_schema_revision, _alembic_version):  # version 0.1.0 has only the second, and means the same by it
        if tables.has_table(table.name):
            revision: str | None = connection.execute(select(table.c.version_num)).scalar_one_or_none()
            return revision
    return None


def _compatible_from(connection: Connection) -> str | None:
    revision: str | None = connection.execute(select(_alembic_version.c.version_num)).scalar_one_or_none()
    return revision


def _set_compatible_from(connection: Connection, revision: str) -> None:
    if connection.execute(update(_alembic_version).values(version_num=revision)).rowcount == 0:
        connection.execute(_alembic_version.insert().values(version_num=revision))


def _is_newer(connection: Connection, current: str | None) -> bool:
    """Tell whether a later version wrote the schema. Raises ConfigurationError when this code cannot use it."""
    known = known_revisions()
    if current is None or current in known:
        return False
    if _compatible_from(connection) in known:
        return True
    raise ConfigurationError(
        f"the database {describe_database(connection.engine)} has schema {current}, which this version does not know: "
        "install the version that wrote it, or point DATABASE_URL elsewhere"
    )


def known_revisions() -> set[str]:
    """Return the revisions that this code has."""
    return {script.revision for script in _scripts()[1].walk_revisions()}


def _scripts() -> tuple[Config, ScriptDirectory]:
    from alembic.config import Config  # noqa: PLC0415 - see HEAD
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    config = Config()
    here = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", here.replace("%", "%%"))
    return config, ScriptDirectory.from_config(config)


def _lock_schema(connection: Connection) -> None:
    """Take PostgreSQL's advisory lock; on SQLite, BEGIN IMMEDIATE already holds the write lock."""
    if connection.dialect.name != "postgresql":
        return
    try:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
            raise
        raise SinkUnavailable(
            f"another process makes or upgrades the tables of the database {describe_database(connection.engine)}: "
            "wait until it has ended; the view pg_locks has its session, with the locktype advisory"
        ) from error
