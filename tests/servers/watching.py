"""A watcher on a sandbox in this very process, and everything a producer shows of it: cheap enough for one a test."""

from __future__ import annotations

import json
import random
import sqlite3
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from email_ingestion.app.account import AccountServices, LedgerOnDemand
from email_ingestion.app.producer import watcher_of
from email_ingestion.blobs import open_blobs
from email_ingestion.breaker import Breaker, BreakerPolicy
from email_ingestion.errors import EmailIngestionError, IMAPConnectionError, TokenRefreshError
from email_ingestion.events import Event
from email_ingestion.ops.observers import combine, open_ops
from email_ingestion.ops.redaction import describe_error
from email_ingestion.ops.status_records import Identity, Names
from email_ingestion.overrides import OperatorOverrides
from email_ingestion.producer import AccountBackoff, WatcherSupervisor
from email_ingestion.settings import Settings
from email_ingestion.stream import Appender, EntryScanner, Keys
from gmail_sandbox import RunningSandbox
from gmail_sandbox.cli import write_atomically
from tests.servers.links import Heard, link
from tests.servers.redis import RedisServer

PATIENCE = 30.0


def letter(number: int, size: int = 100) -> bytes:
    head = b"Subject: letter %d\r\nMessage-ID: <%d@example.org>\r\n\r\n" % (number, number)
    return head + b"0123456789abcde\r\n" * (size // 17)


class OurLeases:
    """The lease of an account that nobody else wants."""

    def owns(self, account: str, timeout: float = 0.0) -> bool:
        return True

    def owner(self, account: str) -> None:
        raise AssertionError(account)

    def invalidate(self, account: str) -> None:
        raise AssertionError(account)


@dataclass
class Watched:
    """One account's watcher with its supervisor, not yet started."""

    sandbox: RunningSandbox
    redis: RedisServer
    folder: Path
    changes: dict[str, Any] = field(default_factory=dict)
    rebuilt_after: float = PATIENCE  # seconds in which the watcher achieves nothing

    def __post_init__(self) -> None:
        token = self.folder / "token.json"
        if not token.exists():
            self.authorize()
        values = {
            "redis_url": self.redis.url,
            "database_url": f"sqlite:///{self.folder / 'ledger.db'}",
            "blob_url": f"file:{self.folder / 'blobs'}",
            "imap_host": "127.0.0.1",
            "imap_port": self.sandbox.imap_port,
            "imap_tls": False,
            "imap_user": self.sandbox.user,
            "imap_timeout_seconds": 5,
            "google_token_file": token,
            "google_token_uri": self.sandbox.token_uri,
            "imap_exclude_labels": (),
            "imap_poll_seconds": 2,
        }
        self.settings = Settings(**(values | self.changes))
        self.account = self.settings.all_accounts[0]
        self.ledger = LedgerOnDemand(self.settings.database_url)
        self.heard = Heard()
        names = Names(accounts=(self.account.name,), breakers=("redis", "imap", "oauth2"), dependencies={"imap": False})
        self.ops = open_ops(Identity("producer", "test-producer", "0"), names, list)
        self.observe = combine(self.ops.observe, self.heard)
        self.fatal: list[EmailIngestionError] = []
        self.backoff = AccountBackoff(random.Random(1))
        policy = BreakerPolicy(fail_max=1000)
        self._imap = Breaker("imap", policy, (IMAPConnectionError,), self.observe)
        self._oauth = Breaker("oauth2", policy, (TokenRefreshError,), self.observe)
        self.control = OperatorOverrides("producer")
        self.supervisor = WatcherSupervisor(
            self.account.name, self._watcher, self.rebuilt_after, OurLeases(), self.observe
        )

    def authorize(self) -> None:
        """Consent, as a person would."""
        write_atomically(self.folder / "token.json", self.sandbox.authorized_user_info())

    def source(self) -> AccountServices:
        made = link(self.redis.url)
        blobs = open_blobs(self.settings.blob_url)
        return AccountServices(
            self.account, self.settings, made, Appender(made), self.ledger, blobs, self.observe, overrides=self.control
        )

    def _watcher(self):
        return watcher_of(self.source(), self.backoff, imap=self._imap, oauth2=self._oauth, give_up=self.fatal.append)

    @contextmanager
    def running(self) -> Iterator[Watched]:
        thread = threading.Thread(target=self.supervisor.run)
        thread.start()
        try:
            yield self
        finally:
            self.supervisor.stop()
            thread.join(PATIENCE)
            assert not thread.is_alive()
            with closing(self.ledger):
                pass

    def until(self, true: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (value := true()):
            assert time.monotonic() < deadline, f"{what}; heard {self.heard.events[-12:]}"
            time.sleep(0.01)
        return value

    def hears(self, kind: type[Event], **fields: Any) -> Any:
        """Wait for an event of a kind and with these fields; returns the first."""

        def found() -> Any:
            return next((e for e in self.heard.of(kind) if all(getattr(e, k) == v for k, v in fields.items())), None)

        return self.until(found, f"{kind.__name__} {fields}")

    def arm_fault(self, name: str, **options: Any) -> None:
        """Arm a fault over the control API, as a drill would."""
        body = {"name": name, "options": {k: v for k, v in options.items() if k != "count"}}
        body |= {"count": options["count"]} if "count" in options else {}
        request = urllib.request.Request(self.sandbox.control_url + "/faults", json.dumps(body).encode(), method="POST")
        urllib.request.urlopen(request, timeout=10).close()

    def queued(self) -> Counter[int]:
        """How often each message is in the stream, by X-GM-MSGID."""
        pages = EntryScanner(link(self.redis.url), Keys()).stream_pages()
        return Counter(entry.gm_msgid for page in pages for entry in page.entries)

    def everything(self) -> Counter[int]:
        """Each message of the mailbox once."""
        return Counter(message.msgid for message in self.sandbox.messages())

    def arrives(self) -> None:
        """Wait until all there is has come, and see that nothing came twice."""
        self.until(lambda: self.queued().keys() >= self.everything().keys(), "all mail in the stream")
        assert self.queued() == self.everything()

    def metric(self, name: str, **labels: str) -> float | None:
        for family in text_string_to_metric_families(self.ops.metrics.render().decode()):
            for sample in family.samples:
                if sample.name == f"email_ingestion_{name}" and labels.items() <= sample.labels.items():
                    return sample.value
        return None

    def told(self, kind: type[Event]) -> list[str]:
        """What the log says of the errors in events of a kind."""
        return [describe_error(event.error) for event in self.heard.of(kind) if event.error]

    def redis_hash(self, key: str) -> dict[bytes, bytes]:
        with self.redis.client() as client:
            return client.hgetall(key)

    @property
    def keys(self) -> Keys:
        return Keys()

    def sql(self, statement: str) -> list[tuple]:
        with closing(sqlite3.connect(self.folder / "ledger.db")) as database, database:
            return database.execute(statement).fetchall()
