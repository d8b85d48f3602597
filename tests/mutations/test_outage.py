"""A database that takes nothing, a Redis that forgot everything: single faults, whose mutants a matrix may outlive."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from email_ingestion.records import Cursor
from email_ingestion.stream import GROUP, Appender, Keys
from gmail_sandbox import SandboxSettings, running_sandbox
from tests.servers.links import link, message
from tests.servers.processes import Place, gmail_settings, place, until
from tests.servers.redis import RedisServer

COUNT = 150


@pytest.fixture
def impatient(tmp_path: Path, own_redis: RedisServer) -> Iterator[Place]:
    """A place whose worker gives a locked database up after a moment."""
    here = tmp_path / "here"
    url = f"sqlite:///{here}/data/email_ingestion.db?timeout=0.1"
    with place(here, own_redis.url, DATABASE_URL=url, CB_RECOVERY_TIMEOUT=1) as made:
        yield made


@contextmanager
def _locked(here: Place) -> Iterator[None]:
    path = here.folder / "data" / "email_ingestion.db"
    with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as foreign:
        foreign.execute("BEGIN IMMEDIATE")
        yield
        foreign.execute("ROLLBACK")


def test_what_the_database_does_not_take_stays_in_the_stream(impatient: Place, own_redis: RedisServer):
    appender = Appender(link(own_redis.url))
    cursor = appender.restart_cursor("default", "INBOX", Cursor(1, 0))
    worker = impatient.worker()
    until(lambda: worker.get("/ready")[0] == 200, "the worker is ready")
    with _locked(impatient):
        appender.append("default", "INBOX", cursor, COUNT, [message(uid) for uid in range(1, COUNT + 1)])
        until(lambda: worker.status()["circuit_breakers"][1]["failure_count"], "the database refused")
        time.sleep(2)
        assert appender.backlog().depth == COUNT
        assert impatient.rows() == []
        with own_redis.client() as client:
            pending = client.xpending_range(Keys().stream, GROUP, "-", "+", COUNT)
        assert max((entry["times_delivered"] for entry in pending), default=0) <= 1
    until(lambda: len(impatient.rows()) == COUNT, "everything is in the database")
    until(lambda: appender.backlog().depth == 0, "the stream is empty")


def test_what_was_in_a_flushed_stream_is_fetched_again(tmp_path: Path, own_redis: RedisServer):
    with (
        running_sandbox(SandboxSettings(mail="bulk:40")) as sandbox,
        place(tmp_path / "here", own_redis.url, **gmail_settings(sandbox, tmp_path / "here")) as here,
        own_redis.client() as client,
    ):
        for _ in range(2):
            client.flushall()
            assert here.run("producer.py", "--once").returncode == 0
            assert client.xlen(Keys().stream) == 40
