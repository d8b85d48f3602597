"""Maintain the database: describe it, search it for damage, give back the space of deleted rows, and their bytes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.exc import SQLAlchemyError

from email_ingestion.errors import OperationFailed
from email_ingestion.ledger.database_errors import translate_open_errors
from email_ingestion.ledger.engine import check_server, describe_database, open_engine
from email_ingestion.ledger.migrate import downgrade, pending_revision
from email_ingestion.ledger.store import Ledger
from email_ingestion.ledger.tables import emails, metadata

# Without pg_monitor a user sees of other users' sessions only that they are there: state and query are hidden.
_SERVER_LOAD = """
    SELECT (SELECT sum(numbackends)::int FROM pg_stat_database) AS connections,
           current_setting('max_connections')::int AS max_connections,
           count(*) FILTER (WHERE datid IS NOT NULL AND backend_type IS NULL)::int AS hidden_sessions,
           coalesce(extract(epoch FROM max(clock_timestamp() - query_start) FILTER (
               WHERE state = 'active' AND backend_type = 'client backend' AND pid <> pg_backend_pid())), 0)::float8
               AS longest_query_seconds,
           (SELECT count(*)::int FROM pg_stat_replication) AS replicas,
           (SELECT extract(epoch FROM max(replay_lag))::float8 FROM pg_stat_replication) AS replica_lag_seconds,
           (SELECT coalesce(json_agg(slot_name ORDER BY slot_name), '[]') FROM pg_replication_slots WHERE NOT active)
               AS idle_slots
    FROM pg_stat_activity
"""
_BLOCKED = """
    SELECT pid, pg_blocking_pids(pid) AS blockers, coalesce(nullif(application_name, ''), usename, '?') AS name,
           coalesce(extract(epoch FROM clock_timestamp() - coalesce(query_start, backend_start)), 0)::float8 AS seconds
    FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0 ORDER BY pid
"""
MAX_FAULTS = 20  # that SQLite looks for; one is enough to restore a backup
CHECKPOINT_SECONDS = 30.0  # for which readers may keep SQLite's log from being emptied
_FTS = ("email_words", "attachment_words")
_ADVICE = "give the command again when nothing else uses the database for long"


def describe_ledger(url: str, *, counted: bool = True) -> str:
    """Describe the state of the database in one sentence; nothing is created, migrated or changed.

    Unless `counted`, it does not say how many messages there are, for which all of them are gone through.

    Raises ConfigurationError when a setting or a permission is wrong or the schema is newer than this code,
    SinkUnavailable when the database accepts no write now.
    """
    engine = open_engine(url)
    try:
        if (file := _file(engine)) and not file.exists():
            return f"{file} is not there yet: the worker makes it"
        check_server(engine)
        with translate_open_errors(describe_database(engine)):
            behind = pending_revision(engine)
        ledger = Ledger(engine)
        ledger.ping(tables=not behind)
        if behind:
            return f"{describe_database(engine)} takes writes; the next start brings its schema to {behind}"
        return f"{describe_database(engine)} takes writes" + (
            f" and holds {ledger.count():,} messages" if counted else ""
        )
    finally:
        engine.dispose()


def refers_outside(url: str) -> bool:
    """Tell whether the bytes of any message are in the blob store. Raises SinkUnavailable where nobody can tell."""
    engine = open_engine(url)
    try:
        if (file := _file(engine)) and not file.exists():
            return False
        with translate_open_errors(describe_database(engine)):
            if pending_revision(engine):
                return False
        return Ledger(engine).contents.any_outside()
    finally:
        engine.dispose()


def allow_older_code(url: str, revision: str) -> str | None:
    """Let code of `revision` use the database; return the oldest that could before, None when there is no database.

    Raises ConfigurationError when a later version wrote the schema, SinkUnavailable when the database is away.
    """
    engine = open_engine(url)
    try:
        if (file := _file(engine)) and not file.exists():
            return None
        return downgrade(engine, revision)
    finally:
        engine.dispose()


def delivery_seconds(url: str, since: datetime, limit: int = 100_000) -> list[float]:
    """Return how long messages took from INTERNALDATE to their row, of the newest that arrived from `since` on.

    Raises as `find_damage` does.
    """
    return [each for found in delivery_seconds_by_account(url, since, limit=limit).values() for each in found]


def delivery_seconds_by_account(
    url: str, since: datetime, until: datetime | None = None, limit: int = 100_000
) -> dict[str, list[float]]:
    """Return by account how long messages took that arrived in this time, as `delivery_seconds` does."""
    arrived_in_time = [emails.c.internaldate >= since, *([emails.c.internaldate <= until] if until else [])]
    found: dict[str, list[float]] = {}
    with _open(url) as connection:
        rows = connection.execute(
            select(emails.c.account, emails.c.internaldate, emails.c.processed_at)
            .where(*arrived_in_time)
            .order_by(emails.c.internaldate.desc())
            .limit(limit)
        )
        for account, arrived, processed in rows:
            found.setdefault(account, []).append(max(0.0, (processed - arrived).total_seconds()))
    return found


def database_load(url: str) -> dict[str, Any]:
    """Return how busy the database is: seconds of a transaction, and of a server also connections, queries and locks.

    `blocked` lists the sessions that wait for a lock, each with the processes it waits for; `idle_slots` the
    replication slots that nobody reads, for which the server keeps its log; `hidden_sessions` counts what this user
    may not see. Values that the database does not have are None.

    Raises as `find_damage` does, and SinkUnavailable when it takes no write.
    """
    started = time.monotonic()
    with _open(url) as connection:
        Ledger(connection.engine).ping()
        load: dict[str, Any] = dict.fromkeys(
            ("connections", "max_connections", "longest_query_seconds", "blocked", "replicas", "replica_lag_seconds")
        )
        load["answer_seconds"] = round(time.monotonic() - started, 4)
        if connection.dialect.name == "postgresql":
            load |= dict(connection.execute(text(_SERVER_LOAD)).mappings().one())
            load["blocked"] = [dict(row) for row in connection.execute(text(_BLOCKED)).mappings()]
        return load


def find_damage(url: str) -> list[str]:
    """Read every page and every reference; return one sentence for each fault found.

    Raises ConfigurationError or SinkUnavailable when the database cannot be read, OperationFailed when there is none.
    """
    with _open(url) as connection:
        if connection.dialect.name == "sqlite":
            reports = [str(row[0]) for row in connection.exec_driver_sql(f"PRAGMA integrity_check({MAX_FAULTS})")]
            orphans = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchmany(MAX_FAULTS)
            return [each for each in reports if each != "ok"] + [f"{row[0]} refers to no {row[2]}" for row in orphans]
        # A server keeps its references itself; turning each row into text reads all of it, wherever it is stored.
        for table in metadata.tables:
            connection.execute(text(f"SELECT count(row::text) FROM {table} AS row"))  # noqa: S608 - our own names
        return []


def compact(url: str) -> tuple[int, int]:
    """Give unused space back and refresh the query planner's statistics; return the bytes before and after.

    Writers wait meanwhile on SQLite, and not on PostgreSQL. Raises the errors of `find_damage`.
    """
    with _open(url) as connection:
        before = _size(connection)
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("COMMIT")  # our engine has begun a transaction, and VACUUM takes none
            for statement in ("VACUUM", "PRAGMA optimize", "PRAGMA wal_checkpoint(TRUNCATE)"):
                connection.exec_driver_sql(statement).close()
        else:
            connection.exec_driver_sql("VACUUM (ANALYZE)")
        return before, _size(connection)


def scrub_ledger(url: str) -> list[str]:
    """Write the database anew, without what was deleted; return what could not be. Writers wait meanwhile.

    Raises ConfigurationError, SinkUnavailable and OperationFailed when the database cannot be opened.
    """
    with _open(url) as connection:
        return list(_scrub_file(connection) if connection.dialect.name == "sqlite" else _scrub_server(connection))


def _scrub_file(connection: Connection) -> Iterator[str]:
    connection.exec_driver_sql("COMMIT")  # our engine has begun a transaction, and VACUUM takes none
    for table in _FTS:  # a deleted word is in a segment, and a mark beside it, until the segments are merged
        connection.exec_driver_sql(f"INSERT INTO {table} ({table}) VALUES ('optimize')").close()  # noqa: S608 - our names
    connection.exec_driver_sql("VACUUM").close()
    if connection.exec_driver_sql("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_stat4'").first():
        connection.exec_driver_sql("ANALYZE").close()  # it holds samples of indexed values
    end = time.monotonic() + CHECKPOINT_SECONDS
    while connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()[0]:
        if time.monotonic() > end:
            yield f"the database: a reader keeps its log (-wal) from being emptied: {_ADVICE}"
            return
        time.sleep(0.1)


def _scrub_server(connection: Connection) -> Iterator[str]:
    for table in (*metadata.tables, "pg_catalog.pg_statistic"):  # the last has samples of values, old ones too
        try:
            connection.execute(text(f"VACUUM (FULL, ANALYZE) {table}"))
        except SQLAlchemyError as error:
            yield f"the database: the table {table} could not be written anew ({type(error).__name__}): {_ADVICE}"
    try:
        connection.execute(text("CHECKPOINT"))  # else what was truncated is on the disk for some minutes more
    except SQLAlchemyError:
        return  # only some may order one, and it comes by itself


def _file(engine: Engine) -> Path | None:
    return Path(engine.url.database or "") if engine.dialect.name == "sqlite" else None


@contextmanager
def _open(url: str) -> Iterator[Connection]:
    """Open a connection for maintenance, whose statements have no time limit. Raises as `find_damage` does."""
    engine = open_engine(url)
    try:
        if engine.dialect.name == "sqlite" and not Path(describe_database(engine)).exists():
            raise OperationFailed(f"{describe_database(engine)} is not there yet: the worker makes it")
        with translate_open_errors(describe_database(engine)), engine.connect() as connection:
            if engine.dialect.name != "sqlite":
                connection = connection.execution_options(isolation_level="AUTOCOMMIT")  # noqa: PLW2901
            yield connection
    finally:
        engine.dispose()


def _size(connection: Connection) -> int:
    if connection.dialect.name == "sqlite":
        path = str(connection.engine.url.database)
        return sum(each.stat().st_size for each in map(Path, (path, f"{path}-wal")) if each.exists())
    return int(connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one())
