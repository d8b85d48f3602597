"""`backfill` brings a period that the settings leave out, once, beside the producer and within the budget."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from email_ingestion.cli.main import app
from email_ingestion.stream import EntryScanner, Keys
from gmail_sandbox import Credentials, RunningSandbox, SandboxSettings, running_sandbox
from tests.servers.links import history_uids, link
from tests.servers.redis import RedisServer
from tests.servers.watching import letter

PASSWORD = "abcdefgh"


def at(year: int, month: int, day: int) -> int:
    return int(datetime(year, month, day, 12, tzinfo=UTC).timestamp() * 1000)


@pytest.fixture
def sandbox() -> Iterator[RunningSandbox]:
    """A message a month of 2024, every third with a label of its own."""
    with running_sandbox(SandboxSettings(credentials=Credentials(app_password=PASSWORD))) as running:
        for month in range(1, 13):
            labels = ["\\Inbox", "Übung"] if month % 3 == 0 else ["\\Inbox"]
            running.deliver(letter(month, 1000), labels, internaldate=at(2024, month, 15))
        running.deliver(letter(99), ["\\Draft"], internaldate=at(2024, 5, 1))
        yield running


@pytest.fixture
def run(sandbox: RunningSandbox, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = {
        "REDIS_URL": redis_server.url,
        "DATABASE_URL": f"sqlite:///{tmp_path / 'l.db'}",
        "BLOB_URL": f"file:{tmp_path / 'b'}",
        "LOG_DIR": str(tmp_path),
        "IMAP_HOST": "127.0.0.1",
        "IMAP_PORT": str(sandbox.imap_port),
        "IMAP_TLS": "false",
        "IMAP_USER": sandbox.user,
        "IMAP_AUTH": "password",
        "IMAP_PASSWORD": PASSWORD,
        "IMAP_START": "now",
    }
    monkeypatch.chdir(tmp_path)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str):
        return CliRunner().invoke(app, ["backfill", *arguments], standalone_mode=False)

    return run


def uids(redis: RedisServer) -> list[int]:
    return [entry.uid for page in EntryScanner(link(redis.url), Keys()).stream_pages() for entry in page.entries]


def test_a_period_comes_newest_first_and_only_once(run, redis_server: RedisServer):
    counts = json.loads(run("--since", "2024-03-01", "--until", "2024-06-15", "--json").stdout)
    assert [(each["mailbox"], each["found"]) for each in counts] == [("[Gmail]/All Mail", 5)]
    assert counts[0]["queued"] == 4  # a draft is left out
    assert uids(redis_server) == [6, 5, 4, 3]
    assert "4 of them queued" not in run("--since", "2024-06-15", "--until", "2024-06-15").stdout
    assert "8 messages in the period, 7 of them queued" not in run("--since", "2024-03-01").stdout
    assert sorted(uids(redis_server)) == list(range(3, 13))
    assert history_uids(redis_server.url) == set(range(3, 13))


@pytest.mark.parametrize(("label", "found"), [("Übung", [12, 9, 6, 3]), ("\\Draft", []), ("nowhere", [])])
def test_a_label_narrows_it(run, redis_server: RedisServer, label: str, found: list[int]):
    assert run("--since", "2024-01-01", "--label", label).exception is None
    assert uids(redis_server) == found


def test_it_ends_with_what_to_do_when_the_budget_is_used_up(run, redis_server: RedisServer, monkeypatch):
    monkeypatch.setenv("IMAP_BYTES_PER_DAY", "100")
    assert run("--since", "2024-01-01").exception is None  # a single batch goes beyond it
    with redis_server.client() as client:
        client.delete("{email_ingestion}:stream")
    assert "run it again tomorrow" in str(run("--since", "2024-01-01").exception)
