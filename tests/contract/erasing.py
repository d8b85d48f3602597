"""A place with mail in database, blob store, Redis and files, from which it is erased; on each database."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from email_ingestion.app.erasures import new_run, open_eraser, reapply_tombstones
from email_ingestion.backup.archive import Archive
from email_ingestion.backup.create import BackupProgress, create_backup
from email_ingestion.backup.restore import RestoreTarget, restore
from email_ingestion.blobs import BlobStore, open_blobs
from email_ingestion.erasure.eraser import Eraser, ErasureSummary
from email_ingestion.erasure.mail_selector import MailSelector
from email_ingestion.erasure.tombstones import TombstoneFile
from email_ingestion.fleet.redis_server import scratch_redis
from email_ingestion.ledger.model import LedgerWrite
from email_ingestion.ledger.store import Ledger, open_ledger
from email_ingestion.parsing import parse
from email_ingestion.records import Cursor, Envelope, RawMessage, SinkMessage
from email_ingestion.routing import Router
from email_ingestion.settings import Settings, load_settings
from email_ingestion.sinks import load_sink
from email_ingestion.sinks.database import DatabaseSink
from email_ingestion.stream import Appender, Consumer, RedisLink
from email_ingestion.stream.dead_letters import dead_letter_fields
from tests.servers.links import link

THRESHOLD = 2_000
SILENT = BackupProgress(lambda _name, _total: None, lambda _done, _total: None)
ANNA, BERT = "anna@example.org", "bert@example.net"


def letter(number: int, sender: str = ANNA, *, to: str = "me@example.com", extra: str = "", body: str = "") -> bytes:
    text = body or f"Private words of number{number}."
    return (
        f"From: Somebody <{sender}>\r\nTo: {to}\r\nSubject: letter {number}\r\n"
        f"Message-ID: <{number}@example.org>\r\n{extra}\r\n{text}\r\n"
    ).encode()


def with_file(number: int, content: str, sender: str = ANNA) -> bytes:
    return (
        f"From: <{sender}>\r\nTo: me@example.com\r\nSubject: letter {number}\r\nMIME-Version: 1.0\r\n"
        'Content-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\nhello\r\n'
        f'--b\r\nContent-Type: text/csv\r\nContent-Disposition: attachment; filename="list{number}.csv"\r\n\r\n'
        f"{content}\r\n--b--\r\n"
    ).encode()


def message(number: int, raw: bytes, *, plain: bool = False, account: str = "default", **facts) -> RawMessage:
    values = {
        "account": account,
        "mailbox": "INBOX",
        "uidvalidity": 7,
        "uid": number,
        "gm_msgid": None if plain else 5000 + number,
        "gm_thrid": None,
        "labels": (),
        "flags": (),
        "internaldate": datetime(2026, 1, 1, tzinfo=UTC),
        "size": len(raw),
        "sha256": hashlib.sha256(raw).hexdigest(),
    }
    return RawMessage(Envelope(**(values | facts)), raw)


@dataclass
class Kept:
    """The installation."""

    folder: Path
    settings: Settings
    ledger: Ledger
    blobs: BlobStore
    link: RedisLink
    sinks: dict[str, object] = field(default_factory=dict)

    def deliver(self, *messages: RawMessage, owed_to: tuple[str, ...] = ("files:out",)) -> set[str]:
        """Record messages, and hand them to the other sinks; return the identities that were known."""
        database = DatabaseSink(self.ledger, self.blobs, THRESHOLD)
        router = Router(self.settings.routes, self.settings.sinks[1:])
        decisions = [(router.decide(parse(each.envelope, each.raw or b"")), each.raw or b"") for each in messages]
        writes = [
            LedgerWrite(each.email, raw, owed_to=owed_to, retention_days=each.retention_days) for each, raw in decisions
        ]
        known = database.deliver(writes)
        for name in self.settings.sinks[1:]:
            sink = self.sinks.setdefault(name, load_sink(name, self.settings))
            sink.deliver([SinkMessage(each.email, each.raw) for each in writes if each.email.email_id not in known])
        return known

    def queue(self, *messages: RawMessage) -> None:
        appender = Appender(self.link)
        account = messages[0].envelope.account
        since = appender.restart_cursor(account, "INBOX", Cursor(7, 0))
        appender.append(account, "INBOX", since, messages[-1].envelope.uid, list(messages))

    def bury(self) -> None:
        """Let what is in the stream become dead letters."""
        consumer = Consumer(self.link, "here-worker-1", 60.0)
        consumer.ensure_group()
        for each in consumer.read_new(100, block=False):
            assert consumer.dead_letter(each, dead_letter_fields("operator", 1, None, "", "here-worker-1"))

    def eraser(self) -> AbstractContextManager[Eraser]:
        return open_eraser(self.settings, self.link, self.ledger, new_run())

    def erase(self, **conditions) -> ErasureSummary:
        with self.eraser() as eraser:
            for _ in eraser.erase(MailSelector(**conditions)):
                pass
            return eraser.summary

    def preview(self, **conditions) -> ErasureSummary:
        with self.eraser() as eraser:
            for _ in eraser.preview(MailSelector(**conditions)):
                pass
            return eraser.summary

    def reapply(self) -> ErasureSummary:
        with self.eraser() as eraser:
            for _ in eraser.reapply():
                pass
            return eraser.summary

    def backup(self) -> Archive:
        tombstones = TombstoneFile(self.settings.erasure_dir)
        directory = self.settings.backup_dir
        return create_backup(
            self.link, self.settings.database_url, directory, scratch_redis, SILENT, tombstones=tombstones
        )

    def restore_target(self) -> RestoreTarget:
        return RestoreTarget(
            self.link, self.settings.database_url, self.settings.pid_dir, self.settings.backup_dir,
            TombstoneFile(self.settings.erasure_dir), partial(reapply_tombstones, self.settings, self.link),
        )  # fmt: skip

    def restore(self, archive: Archive) -> dict:
        return restore(archive, self.restore_target(), SILENT, lambda: self.folder)

    def forget(self) -> None:
        """Lose Redis, the rows of the database and its tombstones, as a new machine has none of it."""
        self.link.client.flushall()
        with self.ledger._database.begin() as connection:
            for table in ("attachments", "places", "deliveries", "emails", "contents", "erased"):
                connection.exec_driver_sql(f"DELETE FROM {table}")

    def delivered(self) -> set[str]:
        return {email_id for email_id, _, _ in self.ledger.erasure.identities()}

    def in_redis(self) -> tuple[int, int, int]:
        """The entries of stream, dead letters, and of the sink `stream`."""
        keys = self.link.keys
        return tuple(self.link.client.xlen(key) for key in (keys.stream, keys.dlq, keys.sink_stream))

    def files(self) -> list[str]:
        return sorted(
            path.relative_to(self.folder).as_posix()
            for name in ("out", "mail", "blobs")
            for path in (self.folder / name).rglob("*")
            if path.is_file()
        )


@contextmanager
def kept_mail(folder: Path, database_url: str, redis_url: str, sinks: str = "files:out,maildir:mail,stream"):
    settings = load_settings(
        database_url=database_url, blob_url="file:blobs", redis_url=redis_url, sinks=sinks,
        blob_threshold_bytes=THRESHOLD, erasure_dir=folder / "erasure", backup_dir=folder / "backups",
        log_dir=folder / "logs", pid_dir=folder / "pids",
    )  # fmt: skip
    with closing(open_ledger(database_url)) as ledger:
        yield Kept(folder, settings, ledger, open_blobs(settings.blob_url), link(redis_url))


def identities(*numbers: int) -> set[str]:
    return {f"default:gm:{5000 + number}" for number in numbers}


Installations = Iterator[Kept]
