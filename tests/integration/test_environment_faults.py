"""What befalls a worker from outside uses up no message's attempts, however long it lasts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from email_ingestion.blobs import open_blobs
from email_ingestion.breaker import Breaker, BreakerPolicy
from email_ingestion.errors import EmailIngestionError, ParserUnavailable, SinkUnavailable
from email_ingestion.ledger.store import Ledger, open_ledger
from email_ingestion.parsing.isolated import IsolatedParser
from email_ingestion.records import Cursor
from email_ingestion.routing import Router
from email_ingestion.sinks.database import DatabaseSink
from email_ingestion.stream import Appender, Consumer, Keys, RedisLink, SyntheticMessages
from email_ingestion.worker import Worker
from email_ingestion.worker.processor import BatchProcessor
from tests.servers.links import link, message
from tests.servers.redis import RedisServer

MESSAGES = 4
TURNS = 12  # of a worker whose messages are dead letters after the third attempt
RETRIES = 1


class Setup:
    """Mail in the stream, and workers that are one life after another of the same consumer."""

    def __init__(self, server: RedisServer, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.ledger: Ledger = open_ledger(f"sqlite:///{folder}/ledger.db")
        self.blobs = open_blobs(f"file:{folder}/blobs")
        self.parser = IsolatedParser(30.0)
        self.user = link(server.url)
        appender = Appender(self.user)
        appender.restart_cursor("default", "INBOX", Cursor(1, 0))
        appender.append("default", "INBOX", Cursor(1, 0), MESSAGES, [message(uid) for uid in range(1, MESSAGES + 1)])

    def worker(self, user: RedisLink | None = None) -> Worker:
        used = user or self.user
        consumer = Consumer(used, "here-worker-1", 60)
        processor = BatchProcessor(
            consumer,
            DatabaseSink(self.ledger, self.blobs, 262144),
            Breaker("database", BreakerPolicy(fail_max=1000), (SinkUnavailable,), lambda event: None),
            self.blobs,
            self.parser,
            synthetic=SyntheticMessages(used),
            further_sinks=(),
            router=Router((), ()),
            on_recorded=lambda: None,
            max_retries=RETRIES,
            instance="here",
            observe=lambda event: None,
        )
        return Worker(
            consumer,
            processor,
            batch=lambda: 10,
            lease=60,
            paused=lambda: False,
            suspects=threading.Lock(),
            min_priority=lambda: 0,
            observe=lambda event: None,
        )

    def work(self, worker: Worker, turns: int = TURNS) -> list[Exception]:
        errors: list[Exception] = []
        for _ in range(turns):
            worker._claimed_at = float("-inf")  # what is due is looked for in every turn
            try:
                worker._run_once()
            except Exception as error:  # noqa: BLE001 - as the loop does
                errors.append(error)
        return errors

    def expect_all_delivered(self) -> None:
        self.worker().drain()
        assert self.ledger.count() == MESSAGES
        with self.server.client() as client:
            assert (client.xlen(Keys().stream), client.xlen(Keys().dlq)) == (0, 0)


@pytest.fixture
def setup(redis_server: RedisServer, tmp_path: Path) -> Iterator[Setup]:
    made = Setup(redis_server, tmp_path)
    with closing(made.ledger), closing(made.parser):
        yield made


@contextmanager
def without(server: RedisServer, *commands: str) -> Iterator[None]:
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "default", *(f"-{command}" for command in commands))
        try:
            yield
        finally:
            client.execute_command("ACL", "SETUSER", "default", "+@all")


@pytest.mark.parametrize("command", ["xack", "xdel", "xclaim", "xpending", "decrby", "evalsha", "xreadgroup"])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_command_that_redis_refuses_buries_nothing(setup: Setup, command: str, restarted: bool):
    worker = setup.worker()
    with without(setup.server, command):
        for _ in range(TURNS if restarted else 1):
            errors = setup.work(setup.worker() if restarted else worker, 2 if restarted else TURNS)
            assert all(isinstance(error, EmailIngestionError) for error in errors)
    setup.expect_all_delivered()


def test_what_is_refused_is_named_and_nothing_is_begun_meanwhile(setup: Setup):
    with without(setup.server, "xdel", "xack"):
        with pytest.raises(EmailIngestionError, match="NOPERM its user may not run XACK, XDEL"):
            setup.user.check_commands()
        assert len(setup.work(setup.worker())) == TURNS
        with setup.server.client() as client:
            assert client.xinfo_groups(Keys().stream)[0]["pending"] == 0
    setup.user.check_commands()
    setup.expect_all_delivered()


def _no_parser(setup: Setup) -> Callable[[], None]:
    command, setup.parser._child._command = setup.parser._child._command, ("no.such.module",)

    def mend() -> None:
        setup.parser._child._command = command

    return mend


def _no_blobs(setup: Setup) -> Callable[[], None]:
    (setup.folder / "blobs").rename(setup.folder / "away")
    return lambda: (setup.folder / "away").rename(setup.folder / "blobs") and None


def test_a_parser_that_cannot_start_buries_nothing(setup: Setup):
    mend = _no_parser(setup)
    errors = setup.work(setup.worker(), 4)
    assert errors
    assert all(isinstance(error, ParserUnavailable) for error in errors)
    for _ in range(RETRIES + 2):
        setup.work(setup.worker(), 2)
    mend()
    setup.expect_all_delivered()


def test_no_thread_for_the_parser_buries_nothing(setup: Setup, monkeypatch: pytest.MonkeyPatch):
    worker = setup.worker()

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        assert all(isinstance(error, ParserUnavailable) for error in setup.work(worker))
    setup.expect_all_delivered()


def test_a_blob_directory_that_is_away_buries_nothing(setup: Setup):
    raw = b"Subject: large\r\n\r\n" + bytes(1000)
    large = replace(message(MESSAGES + 1, raw=raw), raw=None, raw_ref=setup.blobs.put(raw))
    Appender(setup.user).append("default", "INBOX", Cursor(1, MESSAGES), MESSAGES + 1, [large])
    mend = _no_blobs(setup)
    for _ in range(RETRIES + 3):
        with suppress(SinkUnavailable):
            setup.work(setup.worker(), 3)
    mend()
    setup.worker().drain()
    assert setup.ledger.count() == MESSAGES + 1
    with setup.server.client() as client:
        assert client.xlen(Keys().dlq) == 0
