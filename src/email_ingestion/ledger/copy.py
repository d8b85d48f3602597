"""Copy the ledger while it is in use, and merge a copy back into a ledger.

Only deliveries and labels change after a row was written, so a merge is a union: a ledger that is ahead of the copy
stays ahead, and a restore delivers no message a second time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from sqlalchemy import Engine

from email_ingestion.errors import OperationFailed
from email_ingestion.ledger import pg_dump
from email_ingestion.ledger.change_feed import restart_feed
from email_ingestion.ledger.copy_check import open_examined, remove_foreign_code
from email_ingestion.ledger.database_errors import translate_errors
from email_ingestion.ledger.engine import describe_database, open_engine, write_engine
from email_ingestion.ledger.migrate import known_revisions, migrate
from email_ingestion.ledger.row_check import refuse_foreign_rows
from email_ingestion.ledger.store import open_ledger

# Rows refer to rows of the tables before them. The changes are left out: a restore tells all readers to start again.
TABLES = (
    "contents",
    "emails",
    "attachments",
    "places",
    "deliveries",
    "purged",
    "erased",
    "erased_contents",
    "holds",
    "erasure_notices",
    "api_tokens",
    "accounts",
)
ACCESS = ("api_tokens", "accounts")  # which open something, to whoever had them on the day of the copy
_PAGES = 2000  # of SQLite, copied between two looks at the progress

Progress = Callable[[int, int], None]  # done, of how many


@dataclass(frozen=True, slots=True)
class LedgerCopy:
    """The kind, revision and row counts of a copy."""

    kind: Literal["sqlite", "postgresql"]
    schema: str  # the oldest revision whose code can use it
    rows: dict[str, int]  # by table


def copy_ledger(url: str, path: Path, progress: Progress) -> LedgerCopy | None:
    """Write a consistent copy to the new file `path`; return None when there is no ledger yet.

    Raises ConfigurationError, SinkUnavailable and OperationFailed.
    """
    engine = open_engine(url)
    try:
        if engine.dialect.name == "postgresql":
            with translate_errors(describe_database(engine)):
                found = pg_dump.dump_tables(engine, path, TABLES)
            return LedgerCopy("postgresql", *found) if found else None
        source = Path(engine.url.database or "")
        return _copy_file(source, path, progress) if source.exists() else None
    finally:
        engine.dispose()


def check_copy(path: Path, expected: LedgerCopy) -> None:
    """Read the copy to its end and compare schema and row counts; nothing in it is run.

    Raises OperationFailed when it is damaged, incomplete, or has code of others in it.
    """
    if expected.kind == "postgresql":
        found = pg_dump.count_rows(path, TABLES)
    else:
        with open_examined(path, expected.schema) as copy:
            found = _count_rows(copy)
            refuse_foreign_rows(copy, found)
    rows = {table: found.get(table) for table in expected.rows}  # an earlier release counted fewer tables
    if rows != expected.rows:
        raise OperationFailed(f"the copy of the database holds {rows} where {expected.rows} were copied")


def find_merge_obstacle(url: str, copied: LedgerCopy) -> str | None:
    """Return why this copy cannot be merged into the database at `url`, without asking that; None when it can."""
    engine = open_engine(url)
    kind = engine.dialect.name
    engine.dispose()
    if kind != copied.kind:
        return f"the backup holds a {copied.kind} database, DATABASE_URL names {kind}: restore it there"
    if copied.schema not in known_revisions():
        return (
            f"the database in the backup has schema {copied.schema}, which this version does not know: restore it "
            "with the version that made the backup"
        )
    return None


def merge_copy(url: str, path: Path, copied: LedgerCopy, without: Collection[str] = ()) -> int:
    """Insert the rows that only the copy has into the ledger at `url`; return how many messages were added.

    The tables `without` are left out.

    The copy may be migrated; it was checked by `check_copy`. Raises ConfigurationError, SinkUnavailable and
    OperationFailed; nothing is added then.
    """
    if obstacle := find_merge_obstacle(url, copied):
        raise OperationFailed(obstacle)
    open_ledger(url).close()  # makes or migrates it
    tables = [each for each in TABLES if each not in without]
    engine = open_engine(url)
    try:
        with translate_errors(describe_database(engine)):
            if copied.kind == "postgresql":
                added = pg_dump.merge_rows(engine, path, tables)
            else:
                _migrate_file(path)
                added = _merge_file(engine, path, tables)
            if added:
                with write_engine(engine).begin() as connection:
                    restart_feed(connection)
            return added
    finally:
        engine.dispose()


def _copy_file(source: Path, path: Path, progress: Progress) -> LedgerCopy | None:
    try:
        with closing(_connect(source)) as original, closing(_connect(path)) as copy:
            # The open transaction keeps the instant while others write: without it each write starts the copy anew.
            original.execute("BEGIN")
            if not original.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone():
                return None
            original.backup(copy, pages=_PAGES, progress=lambda _, left, total: progress(total - left, total))
            remove_foreign_code(copy)
            copy.execute("PRAGMA journal_mode=DELETE")  # one file, whatever opens it
            (schema,) = copy.execute("SELECT version_num FROM alembic_version").fetchone()
            return LedgerCopy("sqlite", schema, _count_rows(copy))
    except sqlite3.Error as error:
        raise OperationFailed(f"the database {source} cannot be copied: {error}") from error


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, timeout=10)


def _count_rows(copy: sqlite3.Connection) -> dict[str, int]:
    there = {name for (name,) in copy.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    return {
        table: int(copy.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608 - our own names
        for table in TABLES
        if table in there
    }


def _migrate_file(path: Path) -> None:
    engine = open_engine(f"sqlite:///{path}")
    try:
        migrate(engine)
    finally:
        engine.dispose()


def _merge_file(engine: Engine, path: Path, tables: Sequence[str]) -> int:
    added = 0
    with write_engine(engine).connect() as connection:
        raw = cast("Any", connection.connection.driver_connection)
        raw.execute("ATTACH ? AS copy", (str(path),))
        try:
            with connection.begin():
                for table in tables:
                    names = ", ".join(_common_columns(raw, table))
                    statement = f"INSERT OR IGNORE INTO main.{table} ({names}) SELECT {names} FROM copy.{table}"  # noqa: S608
                    done = connection.exec_driver_sql(statement).rowcount
                    added += done if table == "emails" else 0
        finally:
            raw.execute("DETACH copy")
    return added


def _common_columns(connection: Any, table: str) -> list[str]:
    """Return the columns that ledger and copy have, those that a later version added too."""
    found = [
        [row[0] for row in connection.execute("SELECT name FROM pragma_table_info(?, ?)", (table, schema))]
        for schema in ("main", "copy")
    ]
    return [name for name in found[0] if name in found[1]]
