"""A stop finishes what is in flight and gives the rest back: nobody has to wait for a lease, nothing is done twice."""

from __future__ import annotations

import signal
import sqlite3
from contextlib import closing

import pytest

from email_ingestion.records import Cursor
from email_ingestion.stream import GROUP, Appender, Keys
from gmail_sandbox import SandboxSettings, running_sandbox
from tests.servers.links import link, message
from tests.servers.processes import Place, Running, gmail_settings, until
from tests.servers.redis import RedisServer

COUNT = 3000


def _queue(server: RedisServer, count: int) -> None:
    intake = Appender(link(server.url))
    cursor = intake.restart_cursor("default", "INBOX", Cursor(1, 0))
    for start in range(1, count + 1, 500):
        portion = range(start, min(start + 500, count + 1))
        _, cursor = intake.append("default", "INBOX", cursor, portion[-1], [message(uid) for uid in portion])


def _busy(here: Place, worker: Running) -> None:
    until(lambda: here.rows("SELECT 1 FROM emails LIMIT 1"), "the worker is at work")
    assert worker.alive


@pytest.mark.parametrize("signals", [1, 2])
def test_a_worker_told_to_stop_leaves_nothing_for_the_lease(here: Place, own_redis: RedisServer, signals: int):
    _queue(own_redis, COUNT)
    worker = here.worker()
    _busy(here, worker)
    for _ in range(signals):
        worker.process.send_signal(signal.SIGTERM)
    assert worker.ended() == 0
    done = len(here.rows())
    assert 0 < done < COUNT
    with own_redis.client() as client:
        assert client.xpending(Keys().stream, GROUP)["pending"] == 0
        assert client.xlen(Keys().stream) == COUNT - done
        assert client.xinfo_consumers(Keys().stream, GROUP) == []
    assert here.run("worker.py", "--drain").returncode == 0
    assert len(here.rows()) == COUNT
    assert '"event": "duplicate' not in worker.log()
    assert "Traceback" not in worker.log()


def test_a_worker_that_cannot_finish_gives_back_what_it_holds(here: Place, own_redis: RedisServer):
    here.set(STOP_SECONDS=3, DATABASE_URL=f"sqlite:///{here.folder}/data/email_ingestion.db?timeout=60")
    worker = here.worker()
    until(lambda: worker.get("/ready")[0] == 200, "the worker is ready")
    with closing(sqlite3.connect(here.folder / "data" / "email_ingestion.db", isolation_level=None)) as foreign:
        foreign.execute("BEGIN IMMEDIATE")
        _queue(own_redis, 50)
        with own_redis.client() as client:
            until(lambda: client.xpending(Keys().stream, GROUP)["pending"], "the worker holds mail")
            worker.process.send_signal(signal.SIGTERM)
            assert worker.ended() == 0
            held = client.xpending_range(Keys().stream, GROUP, "-", "+", 100)
        assert {entry["times_delivered"] for entry in held} <= {0}
        foreign.execute("ROLLBACK")
    assert here.run("worker.py", "--instance", "2", "--drain").returncode == 0
    assert len(here.rows()) == 50


def test_a_producer_told_to_stop_goes_on_where_it_was(tmp_path, own_redis: RedisServer, here: Place):
    with running_sandbox(SandboxSettings(mail=f"bulk:{COUNT}")) as full, own_redis.client() as client:
        here.set(**gmail_settings(full, tmp_path / "here"))
        producer = here.producer()
        until(lambda: client.xlen(Keys().stream), "mail is flowing")
        producer.process.send_signal(signal.SIGTERM)
        producer.process.send_signal(signal.SIGTERM)
        assert producer.ended() == 0
        assert client.xlen(Keys().stream) < COUNT
        assert here.run("producer.py", "--once").returncode == 0
        uids = [int(fields[b"uid"]) for _, fields in client.xrange(Keys().stream)]
        assert sorted(uids) == list(range(1, COUNT + 1))
        assert "Traceback" not in producer.log()
