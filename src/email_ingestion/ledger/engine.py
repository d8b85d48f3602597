"""Open connections to SQLite or PostgreSQL with the options that the ledger needs."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, func, make_url, select
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import ArgumentError, DisconnectionError

from email_ingestion.atomic_files import file_lock
from email_ingestion.errors import ConfigurationError, SinkUnavailable
from email_ingestion.ledger.database_errors import (
    has_no_tables,
    translate_errors,
    translate_open_errors,
    was_interrupted,
)

_EXAMPLES = "sqlite:///data/email_ingestion.db or postgresql+psycopg://user:password@host/database"


STATEMENT_SECONDS = 20.0  # of a statement on PostgreSQL; a maintenance command may take as long as it likes
PATIENCE_SECONDS = 0.5
_OF_THE_FILE = ("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_IOERR", "SQLITE_PERM", "SQLITE_CORRUPT", "SQLITE_NOTADB")
_STEPS = 20_000  # of SQLite's machine between two looks at the clock: well below a millisecond
_LOCK_SECONDS = 10.0  # how long SQLite waits for another process's transaction


def open_engine(url: str) -> Engine:
    """Make an engine for `url` without connecting; SQLite's directory is created.

    Raises ConfigurationError for the URL of an unsupported database.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigurationError(f"DATABASE_URL is not the address of a database; examples: {_EXAMPLES}") from None
    if parsed.drivername == "sqlite":
        return _open_sqlite(parsed)
    if parsed.drivername in ("postgresql+psycopg", "postgresql", "postgres"):
        return _open_postgresql(parsed.set(drivername="postgresql+psycopg"))
    raise ConfigurationError(f"DATABASE_URL names {parsed.drivername!r}, which is not supported; examples: {_EXAMPLES}")


def open_impatient_engine(url: str) -> Engine:
    """Make an engine whose statements wait for another transaction no longer than PATIENCE_SECONDS.

    Raises the errors of `open_engine`.
    """
    with suppress(ArgumentError, ValueError):  # open_engine says what is wrong
        if (parsed := make_url(url)).get_backend_name() == "sqlite":
            quick = parsed.update_query_dict({"timeout": str(PATIENCE_SECONDS)})
            url = quick.render_as_string(hide_password=False)
    return open_engine(url).execution_options(lock_seconds=PATIENCE_SECONDS)  # which PostgreSQL is told


def describe_database(engine: Engine) -> str:
    """Name the database for error messages, without user and password."""
    url = engine.url
    return url.database or "" if engine.dialect.name == "sqlite" else f"{url.host or 'localhost'}/{url.database}"


def write_engine(engine: Engine) -> Engine:
    """Return an engine for transactions that write: on SQLite each takes the write lock first, and waits for it.

    A transaction that reads first and writes later fails at once when another process wrote in between.
    """
    return engine.execution_options(writes=True)


class QueryTooSlow(SinkUnavailable):
    """A query was ended because it took longer than its caller may wait; the database works."""


class Database:
    """Connections for queries and transactions for writes, whose errors are translated by `translate_errors`.

    On PostgreSQL a statement must end within STATEMENT_SECONDS, or within `seconds`. `make_tables` is called when the
    database has none: somebody removed its file or its schema, and the one that is there now is new.
    """

    def __init__(self, engine: Engine, make_tables: Callable[[], None] | None = None) -> None:
        self.engine = engine
        self._make_tables = make_tables
        self.connections = 0  # that were ever opened: a server that went back was away in between
        event.listen(engine, "connect", self._count_connection)
        self.name = describe_database(engine)
        self._read_engine = engine.execution_options(seconds=STATEMENT_SECONDS)
        self._write_engine = write_engine(self._read_engine)

    def _count_connection(self, *_: object) -> None:
        self.connections += 1

    @contextmanager
    def connect(self, seconds: float | None = None) -> Iterator[Connection]:
        """Open a connection for queries.

        With `seconds` they must end within that time: on SQLite all of them together, on PostgreSQL each. Raises
        QueryTooSlow for one that does not; it is ended, and costs nothing more.
        """
        if seconds is None:
            with self._translated_errors(), self._read_engine.connect() as connection:
                yield connection
            return
        engine = self._read_engine.execution_options(seconds=seconds)
        try:
            with self._translated_errors(), engine.connect() as connection, _interrupted_after(connection, seconds):
                yield connection
        except SinkUnavailable as error:
            if was_interrupted(error):
                raise QueryTooSlow(f"the database {self.name} has not answered within {seconds:g} s") from error
            raise

    @contextmanager
    def begin(self, seconds: float = STATEMENT_SECONDS) -> Iterator[Connection]:
        """Open a transaction for writes, which is committed at the end of the block."""
        engine = self._write_engine.execution_options(seconds=seconds)
        with self._translated_errors(), engine.begin() as connection:
            yield connection

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            with translate_errors(self.name):
                yield
        except SinkUnavailable as error:
            if self._make_tables and has_no_tables(error):
                self._make_tables()
            raise


@contextmanager
def _interrupted_after(connection: Connection, seconds: float) -> Iterator[None]:
    """Let SQLite give a query up when the time is over, as PostgreSQL does by itself."""
    if connection.dialect.name != "sqlite":
        yield
        return
    end = time.monotonic() + seconds
    driver: Any = connection.connection.driver_connection
    driver.set_progress_handler(lambda: time.monotonic() > end, _STEPS)
    try:
        yield
    finally:
        driver.set_progress_handler(None, 0)


def database_now(connection: Connection) -> datetime:
    """Return the time by the clock of the database, which all workers share; SQLite's is this machine's."""
    if connection.dialect.name == "sqlite":
        return datetime.now(UTC)
    now: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
    return now.astimezone(UTC)


_to_json = partial(json.dumps, ensure_ascii=False)  # labels and headers stay readable in the database


def _open_sqlite(url: URL) -> Engine:
    if sqlite3.sqlite_version_info < (3, 35):  # INSERT … RETURNING
        raise ConfigurationError(f"Python has SQLite {sqlite3.sqlite_version}, 3.35 is needed; use PostgreSQL instead")
    if not url.database or url.database == ":memory:":
        raise ConfigurationError("DATABASE_URL must name a file, such as sqlite:///data/email_ingestion.db")
    path = Path(url.database).absolute()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"the directory {path.parent} of the database cannot be created: {error.strerror}; mend DATABASE_URL"
        ) from error
    engine = create_engine(
        url.set(database=str(path)),
        # The driver's own BEGIN comes too late and never before DDL: with None it leaves transactions to us.
        connect_args={"isolation_level": None} | ({} if "timeout" in url.query else {"timeout": _LOCK_SECONDS}),
        json_serializer=_to_json,
        hide_parameters=True,
    )
    event.listen(engine, "do_connect", partial(_remove_stale_wal, path))
    event.listen(engine, "do_connect", partial(_unlock_companions, path))
    event.listen(engine, "connect", partial(_prepare_sqlite, path))
    event.listen(engine, "checkout", partial(_refuse_replaced_file, path))
    event.listen(engine, "begin", _begin_sqlite)
    event.listen(engine, "handle_error", _reconnect_after)
    return engine


def _reconnect_after(context: ExceptionContext) -> None:
    """Open new connections after an error of the file: one that SQLite opened for reading only stays as it is."""
    name = str(getattr(context.original_exception, "sqlite_errorname", ""))
    context.is_disconnect |= name.startswith(_OF_THE_FILE)


def _remove_stale_wal(path: Path, *_: object) -> None:
    """Remove the files beside a database that was removed without them: they would spoil the new one.

    Under a lock, and only while there is no database: another process may be making the new one, with files of these
    names. SQLite itself leaves them alone when it closes a database that was removed.
    """
    companions = _companions(path)
    if path.exists() or not any(each.exists() for each in companions):
        return
    with file_lock(path):
        if not path.exists():
            _remove(companions)
            path.touch(mode=0o600)


def _unlock_companions(path: Path, *_: object) -> None:
    """Let the files beside a database be written that may be written itself.

    SQLite gives them its mode: those that it made while nobody might write the database kept it from being written
    after that was mended.
    """
    if os.access(path, os.W_OK):
        for each in _companions(path):
            if each.exists() and not os.access(each, os.W_OK):
                with suppress(OSError):
                    each.chmod(path.stat().st_mode & 0o777)


def _remove_replaced_wal(path: Path, record: Any) -> None:
    """Remove the files that belong to a database whose place another one took, as by `mv backup.db` or `sqlite3`.

    As long as one process keeps the old database open, all others would read the new one through its index: they find
    errors of the disk, or old pages. The connection of `record` is still open, so no new file has its inode.
    """
    companions = _companions(path)
    if record.info["index"] is None or not path.exists():
        return
    with file_lock(path):
        if _file_identity(companions[1]) == record.info["index"]:
            _remove(companions)


def _companions(path: Path) -> tuple[Path, Path]:
    """Name the log of a database and the index of that; they lie beside the file that a link points to."""
    path = path.resolve()
    return path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")


def _remove(companions: tuple[Path, Path]) -> None:
    for each in companions:
        each.unlink(missing_ok=True)


def _prepare_sqlite(path: Path, connection: sqlite3.Connection, record: Any) -> None:
    _switch_to_wal(connection)
    # FULL: a commit must survive a power cut, because the message is acknowledged right after it.
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()  # opens log and index
    record.info["file"] = _file_identity(path)
    record.info["index"] = _file_identity(_companions(path)[1])


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Retry while another process does the same: SQLite ignores its timeout here (3 of 150 starts failed)."""
    give_up = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            time.sleep(0.01)
        else:
            return


def _refuse_replaced_file(path: Path, connection: sqlite3.Connection, record: Any, proxy: object) -> None:
    """Reconnect when the file was deleted or replaced: SQLite would go on writing to the deleted file."""
    del connection, proxy
    if record.info.get("file") != _file_identity(path):
        _remove_replaced_wal(path, record)
        raise DisconnectionError("the database file was replaced")


def _file_identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _open_postgresql(url: URL) -> Engine:
    try:
        from email_ingestion.ledger.postgresql import open_postgresql  # noqa: PLC0415 - its import needs an extra
    except ImportError as error:
        raise ConfigurationError("PostgreSQL needs psycopg: pip install 'email-ingestion[postgres]'") from error
    return open_postgresql(url, json_serializer=_to_json, hide_parameters=True)


def check_server(engine: Engine) -> None:
    """Raise ConfigurationError for a PostgreSQL database that is not UTF-8, before it refuses messages one by one."""
    if engine.dialect.name != "postgresql":
        return
    limited = engine.execution_options(seconds=STATEMENT_SECONDS)
    with translate_open_errors(describe_database(engine)), limited.connect() as connection:
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
    if encoding != "UTF8":
        raise ConfigurationError(
            f"the database {describe_database(engine)} is encoded in {encoding}; "
            "create it with CREATE DATABASE … ENCODING 'UTF8'"
        )
