"""A mailbox, its way into the ledger and reconcile of both, without a process: for tests that compare them."""

from __future__ import annotations

import hashlib
import math
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from email_ingestion.app.account import AccountServices, LedgerOnDemand, log_in
from email_ingestion.app.erasures import open_eraser
from email_ingestion.blobs import open_blobs
from email_ingestion.erasure.eraser import ErasureSummary
from email_ingestion.erasure.mail_selector import MailSelector
from email_ingestion.ledger.model import LedgerWrite
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.mailbox.imap_mailbox import SelectedMailbox
from email_ingestion.parsing import parse
from email_ingestion.reconcile import Reconciler, ReconcileReport
from email_ingestion.settings import Settings
from email_ingestion.sinks.database import DatabaseSink
from email_ingestion.stream import Appender, Consumer, Keys
from gmail_sandbox import Credentials, RunningSandbox, SandboxSettings, running_sandbox
from tests.servers.dovecot import PASSWORD, USER
from tests.servers.links import Heard, link
from tests.servers.redis import RedisServer

KEYS = Keys()


def _pass(source: AccountServices, connection: ImapMailbox, mailbox: SelectedMailbox) -> None:
    """New mail, then what was there before."""
    assert source.new_mail(connection, mailbox).run(lambda _size, _in_flight: 0.0, lambda _seconds: True)
    history = source.history(connection, mailbox).steps(lambda _size, _in_flight: 0.0)
    while next(history) < math.inf:
        pass


@dataclass
class World:
    """A mail server, a Redis and a ledger, and the steps that producer, worker and reconcile do between them."""

    folder: Path
    redis: RedisServer
    port: int
    changes: dict[str, Any] = field(default_factory=dict)
    heard: Heard = field(default_factory=Heard)
    others: tuple[str, ...] = ()  # mailboxes of the account that are read too

    def __post_init__(self) -> None:
        values = {
            "redis_url": self.redis.url,
            "database_url": f"sqlite:///{self.database}",
            "blob_url": f"file:{self.folder / 'blobs'}",
            "erasure_dir": self.folder / "erasure",
            "imap_host": "127.0.0.1",
            "imap_port": self.port,
            "imap_tls": False,
            "imap_user": USER,
            "imap_auth": "password",
            "imap_password": PASSWORD,
        }
        self.settings = Settings(**(values | self.changes))
        self.account = self.settings.all_accounts[0]
        self.ledger = LedgerOnDemand(self.settings.database_url)
        self.blobs = open_blobs(self.settings.blob_url)

    @property
    def database(self) -> Path:
        return self.folder / "ledger.db"

    def source(self) -> AccountServices:
        made = link(self.redis.url)
        return AccountServices(
            self.account,
            self.settings,
            made,
            Appender(made),
            self.ledger,
            self.blobs,
            self.heard,
            other_mailboxes=self.others,
        )

    def sync(self) -> None:
        """What the producer does on a connection."""
        with self._opened() as (source, connection, mailbox):
            _pass(source, connection, mailbox)

    def work(self, limit: int = 1_000_000) -> int:
        """What a worker does with up to `most` messages; returns how many the ledger had already."""
        sink = DatabaseSink(self.ledger(), self.blobs, self.settings.blob_threshold_bytes)
        consumer = self._consumer()
        had = 0
        while limit > 0 and (batch := consumer.read_new(min(limit, 100), block=False)):
            limit -= len(batch)
            had += len(sink.deliver([self._ledger_write(each.message) for each in batch]))
            consumer.ack(batch)
        return had

    def _consumer(self) -> Consumer:
        consumer = Consumer(link(self.redis.url), "here-worker-1", 60.0)
        consumer.ensure_group()
        return consumer

    def _ledger_write(self, sent) -> LedgerWrite:
        raw = sent.raw if sent.raw is not None else self.blobs.get(sent.raw_ref)
        return LedgerWrite(parse(sent.envelope, raw), raw, sent.raw_ref)

    def dead_letter(self, limit: int) -> None:
        consumer = self._consumer()
        for each in consumer.read_new(limit, block=False):
            assert consumer.dead_letter(each, {"dead_reason": "permanent"})

    def reconcile(self, *, repair: bool = False, room: Callable[[], bool] = lambda: True) -> ReconcileReport:
        with self.reconciler(room if repair else None) as reconciler:
            return reconciler.run()

    def erase(self, **conditions) -> ErasureSummary:
        """Erase delivered, queued and dead messages."""
        with open_eraser(self.settings, link(self.redis.url), self.ledger(), "run") as eraser:
            for _ in eraser.erase(MailSelector(**conditions)):
                pass
            return eraser.summary

    @contextmanager
    def reconciler(self, room: Callable[[], bool] | None = None) -> Iterator[Reconciler]:
        with self._opened() as (source, connection, mailbox):
            yield source.reconciler(connection, mailbox, room)

    @contextmanager
    def _opened(self) -> Iterator[tuple]:
        with closing(log_in(self.account, 10.0)) as connection:
            yield self.source(), connection, connection.examine(connection.find_mailbox(self.account.imap_mailbox))

    def sql(self, statement: str) -> list[tuple]:
        with closing(sqlite3.connect(self.database)) as database, database:
            return database.execute(statement).fetchall()

    def stored(self) -> list[str]:
        return sorted(row[0] for row in self.sql("SELECT sha256 FROM emails"))

    def queued(self) -> int:
        with self.redis.client() as client:
            return client.xlen(KEYS.stream)

    def remove_queued(self, count: int) -> None:
        """Lose entries as an operator's mistake would."""
        with self.redis.client() as client:
            client.xdel(KEYS.stream, *[entry for entry, _ in client.xrange(KEYS.stream, count=count)])

    def flush(self) -> None:
        with self.redis.client() as client:
            client.flushall()

    def volume(self) -> int:
        with self.redis.client() as client:
            return int(client.get(KEYS.volume) or 0)


def letter(number: int) -> bytes:
    return b"Subject: letter %d\r\nMessage-ID: <%d@example.org>\r\n\r\nhello %d\r\n" % (number, number, number)


def digests(count: int) -> list[str]:
    return sorted(hashlib.sha256(letter(number)).hexdigest() for number in range(count))


@contextmanager
def gmail(**settings) -> Iterator[RunningSandbox]:
    credentials = Credentials(user=USER, app_password=PASSWORD)
    with running_sandbox(SandboxSettings(credentials=credentials, **settings)) as running:
        yield running


def sums(report: ReconcileReport) -> tuple[int, int, int, int]:
    return report.delivered, report.dead, report.queued, report.missing
