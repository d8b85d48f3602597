"""PostgreSQL that is frozen, locked, or behind a pooler: nothing waits for ever, and nothing of a session is needed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from email_ingestion.doctor.service_checks import CheckResult, run_check
from email_ingestion.errors import ConfigurationError, SinkUnavailable
from email_ingestion.ledger import engine, migrate, postgresql, store
from email_ingestion.ledger.engine import open_engine
from email_ingestion.ledger.store import Ledger, open_impatient_ledger, open_ledger
from email_ingestion.settings import Settings
from tests.contract.ledgers import letters
from tests.servers.postgres import fresh_database, running_pgbouncer
from tests.servers.processes import until


@contextmanager
def frozen(ledger: Ledger) -> Iterator[None]:
    """Stop the server as a whole: it takes connections, as the kernel does that for it, and answers nothing."""
    with ledger._database.connect() as connection:
        query = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'"
        pids = [int(pid) for pid in connection.exec_driver_sql(query).scalars()]
    postmaster = int(Path(f"/proc/{pids[0]}/stat").read_text().rpartition(")")[2].split()[1])
    for pid in (postmaster, *pids):
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in (postmaster, *pids):
            os.kill(pid, signal.SIGCONT)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql, "CLIENT_SECONDS", 0.5)
    monkeypatch.setattr(postgresql.LimitedConnection, "limit", 0.5)
    monkeypatch.setattr(postgresql, "CONNECT_SECONDS", 2)
    monkeypatch.setattr(store, "PING_SECONDS", 0.5)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may stop the processes of another user")
@pytest.mark.usefixtures("hasty")
def test_a_frozen_server_is_away_and_taken_again_when_it_thaws(postgres_url: str):
    with closing(open_ledger(postgres_url)) as ledger:
        ledger.record(letters(1))
        with frozen(ledger), pytest.raises(SinkUnavailable, match=r"timeout|not answered"):
            ledger.ping()
        with ledger._database.begin(0.5) as connection:
            connection.exec_driver_sql("SELECT 1")
            with frozen(ledger), pytest.raises(OperationalError, match="has not answered for 1 s"):
                connection.exec_driver_sql("SELECT 1")
            connection.rollback()
        until(lambda: _answers(ledger), "it is taken again")
        assert ledger.count() == 1


def _answers(ledger: Ledger) -> bool:
    try:
        ledger.ping()
    except SinkUnavailable:
        return False
    return True


def test_a_lock_that_another_transaction_holds_is_not_waited_for_without_end(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(postgresql, "LOCK_SECONDS", 0.3)
    other = open_engine(postgres_url)
    with closing(open_ledger(postgres_url)) as ledger, other.begin() as connection:
        connection.exec_driver_sql("LOCK TABLE emails IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(SinkUnavailable, match="lock timeout"):
            ledger.record(letters(1))
    other.dispose()


def test_a_transaction_whose_client_is_gone_holds_its_locks_for_a_while_only(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
):
    """The connection is half-open: the server hears nothing of the client, not even that it is closed."""
    monkeypatch.setattr(postgresql, "IDLE_SECONDS", 0.3)
    with closing(open_ledger(postgres_url)) as gone, closing(open_ledger(postgres_url)) as other:
        transaction = gone._database.begin()
        transaction.__enter__().exec_driver_sql("LOCK TABLE emails IN ACCESS EXCLUSIVE MODE")
        assert other.record(letters(1))
        with pytest.raises(SinkUnavailable):
            transaction.__exit__(None, None, None)


@pytest.mark.parametrize("opened", [open_ledger, open_impatient_ledger])
def test_who_opens_a_database_waits_for_no_dead_session_that_made_its_tables(
    postgres_server: str, monkeypatch: pytest.MonkeyPatch, opened: Callable[[str], Ledger]
):
    monkeypatch.setattr(postgresql, "LOCK_SECONDS", 0.3)
    with fresh_database(postgres_server) as url:
        other = open_engine(url)
        with other.begin() as connection:
            migrate._lock_schema(connection)
            with pytest.raises(SinkUnavailable, match="another process makes or upgrades the tables"):
                opened(url)
        other.dispose()
        with closing(opened(url)) as ledger:
            assert ledger.count() == 0


def test_a_statement_has_a_time_limit_and_a_maintenance_command_has_none(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
):
    with closing(open_ledger(postgres_url)) as ledger:
        with pytest.raises(SinkUnavailable, match="statement timeout"), ledger._database.begin(0.2) as connection:
            connection.exec_driver_sql("SELECT pg_sleep(5)")
        with ledger._database.engine.begin() as connection:
            assert connection.exec_driver_sql("SHOW statement_timeout").scalar_one() == "0"
        with ledger._database.connect() as connection:
            wanted = f"{engine.STATEMENT_SECONDS:.0f}s"
            assert connection.exec_driver_sql("SHOW statement_timeout").scalar_one() == wanted


@pytest.mark.parametrize("pool_mode", ["transaction", "session"])
def test_a_ledger_works_through_pgbouncer(postgres_server: str, pool_mode: str):
    with (
        fresh_database(postgres_server) as direct,
        running_pgbouncer(direct, pool_mode) as url,
        closing(open_ledger(url)) as ledger,
        closing(open_ledger(url)) as second,
    ):
        for number in range(12):  # more often than psycopg lets pass before it prepares a statement
            for each in (ledger, second):
                each.record(letters(2 * number + (each is second)))
                each.ping()
                assert each.outbox.claim("a", "here", 10, 60.0).deliveries == ()
        assert (ledger.count(), second.count()) == (24, 24)
        assert _prepared(ledger) is None
        with closing(open_ledger(direct)) as straight:
            assert _prepared(straight) == 5  # psycopg's own default


@pytest.mark.parametrize(("text", "threshold"), [("none", None), ("0", 0), ("50", 50)])
def test_the_threshold_of_prepared_statements_can_be_set(postgres_url: str, text: str, threshold: int | None):
    with closing(open_ledger(f"{postgres_url}&prepare_threshold={text}")) as ledger:
        assert _prepared(ledger) == threshold


def test_a_threshold_that_is_no_number_is_refused():
    with pytest.raises(ConfigurationError, match="prepare_threshold"):
        open_engine("postgresql+psycopg://user@host/mail?prepare_threshold=often")


def _prepared(ledger: Ledger) -> int | None:
    with ledger._database.connect() as connection:
        threshold: int | None = connection.connection.driver_connection.prepare_threshold
        return threshold


def test_a_check_tells_who_waits_for_whom_and_which_slot_nobody_reads(postgres_url: str):
    first, second = open_engine(postgres_url), open_engine(postgres_url)
    with closing(open_ledger(postgres_url)):
        pass
    settings = Settings(database_url=postgres_url)
    with first.connect() as blocker, second.connect() as waiter:
        blocker.exec_driver_sql("LOCK TABLE purged IN ACCESS EXCLUSIVE MODE")
        pid = blocker.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        thread = threading.Thread(target=lambda: waiter.exec_driver_sql("LOCK TABLE purged IN ACCESS SHARE MODE"))
        thread.start()
        until(lambda: f"waits for PID {pid}" in _database_check(settings).text, "the waiting session is told")
        assert _database_check(settings).level == "WARNING"
        blocker.rollback()
        thread.join()
        waiter.rollback()
        blocker.exec_driver_sql("SELECT pg_create_physical_replication_slot('unread')")
        blocker.commit()
        try:
            found = _database_check(settings)
            assert (found.level, "nobody reads the replication slot unread" in found.text) == ("WARNING", True)
        finally:
            blocker.exec_driver_sql("SELECT pg_drop_replication_slot('unread')")
            blocker.commit()
    first.dispose()
    second.dispose()


def test_a_user_without_rights_is_told_all_connections_and_what_it_cannot_see(postgres_server: str):
    with fresh_database(postgres_server) as url:
        owner = open_engine(url)
        with owner.connect() as connection:
            connection.exec_driver_sql("CREATE ROLE plain LOGIN")
            connection.exec_driver_sql("GRANT CREATE, USAGE ON SCHEMA public TO plain")
            connection.commit()
            plain = url.replace("postgres@", "plain@")
            open_ledger(plain).close()
            found = _database_check(Settings(database_url=plain))
            assert found.values["connections"] >= 2
            assert "the queries are hidden" in found.text
            connection.exec_driver_sql("DROP OWNED BY plain")
            connection.exec_driver_sql("DROP ROLE plain")
            connection.commit()
        owner.dispose()


def _database_check(settings: Settings) -> CheckResult:
    return run_check("database", settings, timedelta(hours=1))[0]
