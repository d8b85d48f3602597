"""Connections to PostgreSQL on which nothing waits for ever, also through a pooler such as PgBouncer.

The server gives a statement up by `statement_timeout` and `lock_timeout`. They are set for each transaction, as by SET
LOCAL: in its transaction mode a pooler gives the next transaction another connection of the server. A server that is
frozen, or gone without a word, gives up nothing: then the client does, and closes the connection. And where the client
is gone, or has closed a connection of which the server hears nothing, the server ends a transaction that writes by
`idle_in_transaction_session_timeout`: else it would hold its locks for ever.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import psycopg
from sqlalchemy import URL, Connection, Engine, create_engine, event

from email_ingestion.errors import ConfigurationError

LOCK_SECONDS = 10.0  # that it waits for another transaction
IDLE_SECONDS = 30.0  # between two statements of a transaction that writes
LONG_IDLE_SECONDS = 600.0  # of a maintenance command
CLIENT_SECONDS = 5.0  # that the answer may take beyond that; also of what is asked outside of a transaction
CONNECT_SECONDS = 10
# By the kernel, for a connection over TCP whose other end is gone.
_KEEPALIVE = {"keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20_000}
_SET_LOCAL = "SELECT set_config('TimeZone', 'UTC', true)"
_IDLE = ", set_config('idle_in_transaction_session_timeout', '{idle:.0f}', true)"
_LIMITS = ", set_config('statement_timeout', '{statement:.0f}', true), set_config('lock_timeout', '{lock:.0f}', true)"


class LimitedConnection(psycopg.Connection[Any]):
    """A connection on which every answer must come within `limit` seconds; None: whenever it comes."""

    limit: float | None = CLIENT_SECONDS

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **options: Any) -> Any:
        """Wait for an answer. Raises OperationalError, and closes the connection, when it does not come."""
        if self.limit is None or options.get("timeout") is not None:
            return super().wait(gen, *args, **options)
        return super().wait(self._bounded(gen, self.limit), *args, **options)

    def _bounded(self, gen: Generator[Any, Any, Any], seconds: float) -> Generator[Any, Any, Any]:
        """Pass on what a generator of psycopg waits for: it is woken ten times a second, ready or not."""
        end = time.monotonic() + seconds
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > end:
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"the server has not answered for {seconds:g} s")
                wanted = gen.send(ready)
        except StopIteration as end_of_answer:
            return end_of_answer.value


def open_postgresql(url: URL, **options: Any) -> Engine:
    """Make an engine for `url` without connecting.

    `prepare_threshold` in its query is psycopg's: after how many executions a statement is prepared on the server, or
    `none`; without it none is prepared through a pooler, where the next transaction would not find it.
    """
    threshold = url.query.get("prepare_threshold")
    try:
        chosen = None if threshold in (None, "none") else int(str(threshold))
    except ValueError:
        raise ConfigurationError("DATABASE_URL: prepare_threshold must be a number, or none") from None
    engine = create_engine(
        url.difference_update_query(["prepare_threshold"]),
        connect_args={"connect_timeout": CONNECT_SECONDS, **_KEEPALIVE},
        pool_pre_ping=True,
        **options,
    )

    def prepare(connection: LimitedConnection, record: object) -> None:
        del record
        if threshold is not None or _is_pooled(connection):
            connection.prepare_threshold = chosen

    event.listen(engine, "do_connect", _connect)
    event.listen(engine, "connect", prepare)
    event.listen(engine, "begin", _begin)
    event.listen(engine, "checkin", _restore_limit)
    return engine


def _connect(dialect: object, record: object, arguments: list[Any], options: dict[str, Any]) -> LimitedConnection:
    del dialect, record
    return LimitedConnection.connect(*arguments, **options)


def _is_pooled(connection: LimitedConnection) -> bool:
    """Whether a pooler is between us and the server: the process that answers is not the one that we connected to."""
    answering = connection.execute("SELECT pg_backend_pid()").fetchone()
    connection.rollback()
    return answering is None or answering[0] != connection.info.backend_pid


def _begin(connection: Connection) -> None:
    """Limit a transaction, and use UTC: the year 1 does not fit into a datetime west of Greenwich."""
    options = connection.get_execution_options()
    seconds: float | None = options.get("seconds")
    lock = options.get("lock_seconds", LOCK_SECONDS)  # of who must not wait so long
    driver_connection = connection.connection.driver_connection
    assert isinstance(driver_connection, LimitedConnection)  # noqa: S101 - made by `_connect`
    driver_connection.limit = None if seconds is None else seconds + CLIENT_SECONDS
    limits = "" if seconds is None else _LIMITS.format(statement=seconds * 1000, lock=min(seconds, lock) * 1000)
    if options.get("writes"):
        limits += _IDLE.format(idle=1000 * (LONG_IDLE_SECONDS if seconds is None else IDLE_SECONDS))
    connection.exec_driver_sql(_SET_LOCAL + limits)


def _restore_limit(connection: LimitedConnection | None, record: object) -> None:
    del record
    if connection is not None:
        connection.limit = CLIENT_SECONDS
