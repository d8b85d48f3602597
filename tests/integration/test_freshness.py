"""The producer tells since when new mail waits on the server, over a real sandbox and a real Redis."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from email_ingestion.app.account import AccountServices, LedgerOnDemand, log_in
from email_ingestion.blobs import open_blobs
from email_ingestion.events import NewMailWaiting, Synced
from email_ingestion.settings import Settings
from email_ingestion.stream import Appender
from gmail_sandbox import RunningSandbox, SandboxSettings, running_sandbox
from tests.servers.links import Heard, link
from tests.servers.processes import gmail_settings
from tests.servers.redis import RedisServer

LETTER = b"Subject: hello\r\n\r\nworld\r\n"
LONG_AGO = 1_600_000_000


@pytest.fixture
def sandbox():
    with running_sandbox(SandboxSettings()) as running:
        yield running


class Pass:
    """What the producer does on a connection, and what it tells."""

    def __init__(self, sandbox: RunningSandbox, redis: RedisServer, folder: Path) -> None:
        given = {name.lower(): value for name, value in gmail_settings(sandbox, folder).items()}
        self.settings = Settings(
            **given, redis_url=redis.url, database_url=f"sqlite:///{folder / 'l.db'}", blob_url=f"file:{folder / 'b'}"
        )
        self.heard = Heard()
        made = link(redis.url)
        account = self.settings.all_accounts[0]
        ledger, blobs = LedgerOnDemand(self.settings.database_url), open_blobs(self.settings.blob_url)
        self.source = AccountServices(account, self.settings, made, Appender(made), ledger, blobs, self.heard)

    def run(self, *, room: bool = True) -> bool:
        with closing(log_in(self.source.account, 10.0)) as connection:
            mailbox = connection.examine(connection.find_mailbox(self.source.account.imap_mailbox))
            return self.source.new_mail(connection, mailbox).run(lambda *_: 0.0 if room else 1.0, lambda _: room)

    def waiting(self) -> list[float]:
        return [event.since for event in self.heard.of(NewMailWaiting)]

    def listed(self) -> list[float]:
        return [event.listed_ago for event in self.heard.of(Synced) if event.listed_ago is not None]


@pytest.fixture
def reading(sandbox: RunningSandbox, redis_server: RedisServer, tmp_path: Path, monkeypatch) -> Pass:
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")
    return Pass(sandbox, redis_server, tmp_path)


def test_mail_of_years_ago_that_the_first_run_finds_has_waited_for_nobody(
    sandbox: RunningSandbox, reading: Pass
) -> None:
    sandbox.deliver(LETTER, internaldate=LONG_AGO * 1000)
    assert reading.run(room=False)  # it is history, which is walked beside
    assert reading.waiting() == []


def test_new_mail_waits_since_the_server_got_it_until_it_is_in_the_stream(
    sandbox: RunningSandbox, reading: Pass
) -> None:
    assert reading.run()
    assert len(reading.listed()) == 1
    for arrived in (LONG_AGO + 60, LONG_AGO, LONG_AGO + 120):
        sandbox.deliver(LETTER, internaldate=arrived * 1000)
    assert reading.run(room=False) is False
    assert reading.waiting() == [LONG_AGO]
    assert len(reading.listed()) == 1  # not until all of it is in the stream
    assert reading.run()
    assert len(reading.listed()) == 2
    assert 0 <= reading.listed()[-1] < 60
