"""What a database needs now and then: a reading of all of it, and the room back that deleted rows left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, text

from email_ingestion.errors import OperationFailed
from email_ingestion.ledger.engine import open_engine, place
from email_ingestion.ledger.failures import while_opening
from email_ingestion.ledger.schema import metadata

MOST_FAULTS = 20  # that SQLite looks for; one is enough to restore a backup


def faults(url: str) -> list[str]:
    """What a reading of every page and every reference found; empty when all is well.

    Raises ConfigurationError or SinkUnavailable when it cannot be read, OperationFailed when there is none.
    """
    with _open(url) as connection:
        if connection.dialect.name == "sqlite":
            said = [str(row[0]) for row in connection.exec_driver_sql(f"PRAGMA integrity_check({MOST_FAULTS})")]
            orphans = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchmany(MOST_FAULTS)
            return [each for each in said if each != "ok"] + [f"{row[0]} refers to no {row[2]}" for row in orphans]
        # A server keeps its references itself; turning each row into text reads all of it, wherever it is stored.
        for table in metadata.tables:
            connection.execute(text(f"SELECT count(row::text) FROM {table} AS row"))  # noqa: S608 - our own names
        return []


def compact(url: str) -> tuple[int, int]:
    """Give room back and refresh the planner's numbers; returns the bytes before and after.

    Writers wait meanwhile on SQLite, and not on PostgreSQL. Raises as `faults` does.
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


@contextmanager
def _open(url: str) -> Iterator[Connection]:
    engine = open_engine(url)
    try:
        if engine.dialect.name == "sqlite" and not Path(place(engine)).exists():
            raise OperationFailed(f"{place(engine)} is not there yet: the worker makes it")
        with while_opening(place(engine)), engine.connect() as connection:
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
