"""Run pg_dump and pg_restore for a ledger in PostgreSQL; the password is passed in the environment only."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from shutil import which
from typing import IO, Any, cast

from sqlalchemy import Engine, text

from email_ingestion.errors import ConfigurationError, OperationFailed
from email_ingestion.ledger.row_check import checked_dump_rows
from email_ingestion.settings import environment

# pg_restore writes a table as this line, one line for each row, and `\.`.
_COPY_LINE = re.compile(rb"COPY (?:\S+\.)?(\S+) (\(.*\)) FROM stdin;\n")
_COLUMN = re.compile(r'\w+|"[^"]+"')
_COLUMNS = re.compile(rf"\((?:{_COLUMN.pattern})(?:, (?:{_COLUMN.pattern}))*\)")
_COPY_END = b"\\.\n"
_STDERR_BYTES = 4096  # of the end of what pg_restore says


def dump_tables(engine: Engine, path: Path, tables: Sequence[str]) -> tuple[str, dict[str, int]] | None:
    """Dump the ledger's schema to `path`; return the revision and the row counts of the same snapshot.

    None when there is no ledger yet. Raises OperationFailed and ConfigurationError.
    """
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection, connection.begin():
        if connection.execute(text("SELECT to_regclass('alembic_version')")).scalar_one() is None:
            return None
        snapshot, schema = connection.execute(text("SELECT pg_export_snapshot(), current_schema()")).one()
        revision = str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one())
        rows = {
            table: int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())  # noqa: S608 - our own names
            for table in tables
            if connection.execute(text("SELECT to_regclass(:name)"), {"name": table}).scalar_one() is not None
        }
        command = [
            _find_program("pg_dump"),
            "--format=custom",
            "--no-owner",
            "--no-privileges",
            f"--snapshot={snapshot}",
        ]
        command += [f'--schema="{schema}"', f"--file={path}", _connection_url(engine)]
        result = subprocess.run(command, env=_environment(engine), capture_output=True, text=True, check=False)
    if result.returncode:
        raise OperationFailed(f"pg_dump failed: {_last_line(result.stderr)}")
    return revision, rows


def count_rows(path: Path, tables: Sequence[str]) -> dict[str, int]:
    """Read a dump to its end and return the number of rows by table. Raises OperationFailed, for rows of others too."""
    found: dict[str, int] = {}
    with _open_pg_restore(path, tables) as lines:
        for table, columns, rows in _iter_tables(lines, tables):
            names = [each.strip('"') for each in _COLUMN.findall(columns)]
            found[table] = sum(1 for _ in checked_dump_rows(table, names, rows))
    return {table: found[table] for table in tables if table in found}


def merge_rows(engine: Engine, path: Path, tables: Sequence[str]) -> int:
    """Insert the rows that only the dump has, in one transaction; return how many messages were added.

    What a later version has added to a row is left out where this database has no column for it. Raises
    OperationFailed, and then nothing was added.
    """
    ours: dict[str, list[str]] = {}  # the columns of each table that the dump has rows for
    with _driver_errors(engine), engine.connect() as connection, connection.begin():
        cursor = cast("Any", connection.connection.driver_connection).cursor()
        with _open_pg_restore(path, tables) as lines:
            for table, columns, rows in _iter_tables(lines, tables):
                cursor.execute(f"CREATE TEMPORARY TABLE back_{table} (LIKE {table} INCLUDING DEFAULTS) ON COMMIT DROP")
                ours[table] = _columns(cursor, f"back_{table}")
                for column in _COLUMN.findall(columns):
                    if column.strip('"') not in ours[table]:  # of a later version: read, and left out
                        cursor.execute(f"ALTER TABLE back_{table} ADD COLUMN {column} text")
                with cursor.copy(f"COPY back_{table} {columns} FROM STDIN") as copy:
                    for row in rows:
                        copy.write(row)
        added = 0
        for table in tables:
            if table not in ours:
                continue
            names = ", ".join(f'"{name}"' for name in ours[table])
            cursor.execute(
                f"INSERT INTO {table} ({names}) SELECT {names} FROM back_{table} ON CONFLICT DO NOTHING"  # noqa: S608
            )
            added += cursor.rowcount if table == "emails" else 0
    return added


@contextmanager
def _open_pg_restore(path: Path, tables: Sequence[str]) -> Iterator[IO[bytes]]:
    """Open pg_restore's output for these tables. Raises OperationFailed when it ends with an error."""
    command = [
        _find_program("pg_restore"),
        "--data-only",
        "--file=-",
        *(f"--table={table}" for table in tables),
        str(path),
    ]
    with tempfile.TemporaryFile() as errors:  # a pipe that is not read while rows are could fill up
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process:
            yield cast("IO[bytes]", process.stdout)
            process.communicate()
        if process.returncode:
            errors.seek(max(0, errors.tell() - _STDERR_BYTES))
            raise OperationFailed(f"pg_restore failed: {_last_line(errors.read().decode(errors='replace'))}")


def _iter_tables(lines: Iterable[bytes], tables: Collection[str]) -> Iterator[tuple[str, str, Iterator[bytes]]]:
    """Yield table, columns and rows of each COPY; read the rows before the next item.

    The names become part of statements, and a dump may come from anywhere: raises OperationFailed for other tables than
    `tables`, for one that comes twice, and for what is no list of names.
    """
    rest, seen = iter(lines), set()
    for line in rest:
        if found := _COPY_LINE.fullmatch(line):
            table, columns = found[1].decode(errors="replace"), found[2].decode(errors="replace")
            if table not in tables or table in seen or not _COLUMNS.fullmatch(columns):
                raise OperationFailed("the copy of the database is none of ours: it names a table that we do not have")
            seen.add(table)
            yield table, columns, takewhile(_COPY_END.__ne__, rest)


@contextmanager
def _driver_errors(engine: Engine) -> Iterator[None]:
    """Raise OperationFailed for the driver's own errors, which pass by SQLAlchemy and may quote a row."""
    driver = cast("Any", engine.dialect).dbapi
    try:
        yield
    except driver.Error as error:
        reason = error.diag.message_primary or type(error).__name__
        raise OperationFailed(f"the database takes nothing of the backup and is as it was: {reason}") from None


def _columns(cursor: Any, table: str) -> list[str]:
    cursor.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped", (table,)
    )
    return [name for (name,) in cursor.fetchall()]


def _find_program(name: str) -> str:
    path = which(name)
    if path is None:
        raise ConfigurationError(f"{name} is not here: install PostgreSQL's client (Debian: postgresql-client)")
    return path


def _connection_url(engine: Engine) -> str:
    return engine.url.set(drivername="postgresql", password=None).render_as_string(hide_password=False)


def _environment(engine: Engine) -> dict[str, str]:
    secret = engine.url.password
    return environment() | ({"PGPASSWORD": str(secret)} if secret else {})


def _last_line(stderr: str) -> str:
    return stderr.strip().rpartition("\n")[2] or "it said nothing"
