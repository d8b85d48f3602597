"""Accounts of the database, while the producer runs: added, paused, resumed, spoilt and removed, with real servers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import create_engine, make_url, text

from email_ingestion.ledger.accounts import StoredAccounts
from email_ingestion.ledger.store import open_ledger
from gmail_sandbox import RunningSandbox
from tests.servers.dovecot import PASSWORD, USER, DovecotServer, running_dovecot
from tests.servers.postgres import fresh_database, running_postgres
from tests.servers.processes import Place, Running, until


@pytest.fixture(params=["sqlite", "postgresql"])
def place_of_accounts(request: pytest.FixtureRequest, here: Place) -> Iterator[Place]:
    here.set(TOKEN_ENCRYPTION_KEY=Fernet.generate_key().decode(), IMAP_EXCLUDE_LABELS="none")
    if request.param == "sqlite":
        here.set(DATABASE_URL=f"sqlite:///{here.folder}/data/email_ingestion.db")
        yield here
        return
    with running_postgres() as server, fresh_database(server) as url:
        here.set(DATABASE_URL=url)
        yield here


@pytest.fixture
def dovecot() -> Iterator[DovecotServer]:
    with running_dovecot() as server:
        yield server


def letter(number: int) -> bytes:
    return b"Subject: letter %d\r\nMessage-ID: <account-%d@example.org>\r\n\r\nhello %d\r\n" % (number, number, number)


def accounts(here: Place, *words: str, code: int = 0) -> str:
    done = here.run("-m", "email_ingestion", "accounts", *words)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    return done.stdout + done.stderr


def order(here: Place, give: Callable[[StoredAccounts], bool]) -> None:
    """As the command does it, without the time that a process takes."""
    with closing(open_ledger(here.environment["DATABASE_URL"])) as ledger:
        assert give(ledger.accounts)


def execute(here: Place, statement: str) -> None:
    engine = create_engine(here.environment["DATABASE_URL"])
    with closing(engine.raw_connection()) as connection:
        connection.cursor().execute(statement)
        connection.commit()
    engine.dispose()


@contextmanager
def database_away(url: str) -> Iterator[None]:
    """Nobody gets a connection to it, as while a server starts again."""
    name = make_url(url).database
    engine = create_engine(make_url(url).set(database="postgres"), isolation_level="AUTOCOMMIT")

    def allow(yes: str) -> None:
        with engine.connect() as connection:
            connection.execute(text(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS {yes}"))
            ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
            connection.execute(text(ended), {"name": name})

    allow("false")
    try:
        yield
    finally:
        allow("true")
        engine.dispose()


def watch(producer: Running, name: str) -> str | None:
    return next((each["watch"] for each in producer.status()["accounts"] if each["name"] == name), None)


def reasons(producer: Running) -> str:
    return "\n".join(json.loads(producer.get("/ready")[1])["reasons"])


def produced(producer: Running) -> float | None:
    return producer.metric("email_ingestion_emails_produced_total")


def test_an_account_is_taken_up_paused_and_removed_without_a_restart(
    place_of_accounts: Place, sandbox: RunningSandbox, dovecot: DovecotServer, tmp_path: Path
):
    here = place_of_accounts
    (tmp_path / "password").write_text(PASSWORD)
    producer = here.producer()
    until(lambda: watch(producer, "default") == "idle", "the account of the settings is read")
    depot = ("--user", USER, "--host", "127.0.0.1", "--port", str(dovecot.imap_port), "--auth", "password")
    dovecot.deliver([letter(1)])
    accounts(here, "add", "depot", *depot, "--password-file", str(tmp_path / "password"))
    until(lambda: produced(producer) == 1, "its mail arrives")
    order(here, lambda stored: stored.set_state("depot", "paused", "me"))
    until(lambda: watch(producer, "depot") == "paused", "the producer reads it no more")
    dovecot.deliver([letter(2)])
    sandbox.deliver(letter(3))
    until(lambda: produced(producer) == 2, "the mail of the other account arrives")
    order(here, lambda stored: stored.set_state("depot", "active", "me"))
    until(lambda: produced(producer) == 3, "it goes on where it was")
    if here.environment["DATABASE_URL"].startswith("postgresql"):
        _trouble(here, producer, sandbox, dovecot)
    else:
        _move(here, producer)
    shown = accounts(here, "remove", "depot")
    assert "mail stays" in shown
    assert "cursor" in shown
    until(lambda: watch(producer, "depot") is None, "it is gone")
    until(lambda: "depot" not in reasons(producer), "nothing of it is held against the producer")
    metrics = producer.get("/metrics")[1]
    assert [line for line in metrics.splitlines() if 'imap_backlog_messages{account="depot"}' in line] == []
    log = producer.log()
    changes = [json.loads(line)["change"] for line in log.splitlines() if '"account_updated"' in line]
    moved = [] if here.environment["DATABASE_URL"].startswith("postgresql") else ["changed"]
    assert changes == ["added", "paused", "resumed", *moved, "removed"]
    assert PASSWORD not in log
    assert producer.terminate() == 0


def _move(here: Place, producer: Running) -> None:
    """A person gives the account another server, because the first one is away for long."""
    with running_dovecot() as other:
        other.deliver([letter(6)])
        accounts(here, "change", "depot", "--port", str(other.imap_port))
        until(lambda: produced(producer) == 4, "the mail of the other server arrives")


def _trouble(here: Place, producer: Running, sandbox: RunningSandbox, dovecot: DovecotServer) -> None:
    """The database is away for a while, and then somebody spoils a row."""
    with database_away(here.environment["DATABASE_URL"]):
        until(lambda: "stay as they are known" in reasons(producer), "the producer says what it cannot notice")
        dovecot.deliver([letter(4)])
        until(lambda: produced(producer) == 4, "what is known goes on")
    until(lambda: "stay as they are known" not in reasons(producer), "it can ask again")
    execute(here, "UPDATE accounts SET settings = '{nonsense'")
    until(lambda: "account depot" in reasons(producer), "the spoilt row is named")
    assert "no JSON object; it is read as it was before" in reasons(producer)
    found = json.loads(here.run("-m", "email_ingestion", "doctor", "--json").stdout)["checks"]
    assert {each["verdict"] for each in found if each["check"] == "account depot"} == {"failed"}
    sandbox.deliver(letter(5))
    until(lambda: produced(producer) == 5, "the others go on")


def test_a_producer_needs_no_account_in_the_settings(here: Place, dovecot: DovecotServer):
    url = f"sqlite:///{here.folder}/data/email_ingestion.db"
    key = Fernet.generate_key().decode()
    here.set(IMAP_USER="", TOKEN_ENCRYPTION_KEY=key, DEPOT_SECRET=PASSWORD, DATABASE_URL=url)
    refused = here.producer()
    assert refused.ended() == 78
    assert "IMAP_USER" in refused.log()
    depot = ("--user", USER, "--host", "127.0.0.1", "--port", str(dovecot.imap_port), "--auth", "password")
    accounts(here, "add", "depot", *depot, "--password-env", "DEPOT_SECRET")
    dovecot.deliver([letter(1)])
    assert here.run("producer.py", "--once").returncode == 0
    producer = here.producer()
    until(lambda: watch(producer, "depot") == "idle", "it is read")
    dovecot.deliver([letter(2)])
    until(lambda: produced(producer) == 1, "its new mail arrives")
    order(here, lambda stored: stored.remove("depot", "me"))
    until(lambda: "no account" in reasons(producer), "an empty producer says so")
    accounts(here, "add", "depot", *depot, "--password-env", "DEPOT_SECRET")
    dovecot.deliver([letter(3)])
    until(lambda: produced(producer) == 2, "only what is new comes: its cursor was kept")
    assert producer.terminate() == 0
