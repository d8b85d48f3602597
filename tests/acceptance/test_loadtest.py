"""Load on the live system: what it tells is true, and nothing of it stays where it is not wanted."""

from __future__ import annotations

import json

from email_ingestion.stream import Keys
from gmail_sandbox import RunningSandbox
from tests.servers.commands import typed
from tests.servers.processes import Place, until
from tests.servers.redis import RedisServer

TABLES = ("emails", "attachments", "contents", "deliveries")


def _sandbox_runs(here: Place, sandbox: RunningSandbox) -> None:
    """As `start.sh --sandbox` leaves it."""
    (here.folder / "data" / "sandbox").mkdir(parents=True, exist_ok=True)
    port = sandbox.control_url.rsplit(":", 1)[1]
    (here.folder / "data" / "sandbox" / "ready.json").write_text(json.dumps({"control_port": int(port)}))
    (here.folder / "data" / "sandbox.env").touch()


def test_load_goes_the_way_of_mail_and_leaves_nothing(
    here: Place, own_redis: RedisServer, sandbox: RunningSandbox
) -> None:
    here.set(SINKS="database,files:out")
    refused = typed(here, "loadtest", "--emails", "5")
    assert (refused.returncode, "no worker runs" in refused.stderr) == (2, True), refused.stderr
    producer, worker = here.producer(), here.worker()
    sandbox.deliver(b"Subject: real\r\nMessage-ID: <real@example.com>\r\n\r\nreal\r\n")
    until(lambda: here.rows("SELECT state FROM deliveries") == [("delivered",)], "mail flows")
    before = {table: here.rows(f"SELECT * FROM {table}") for table in TABLES}
    done = typed(here, "loadtest", "--emails", "650", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["way"], summary["delivered"], summary["failed"], summary["missing"]) == ("rehearsal", 650, 0, 0)
    latency = summary["latency_seconds"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] <= latency["max"]
    assert summary["rate_per_second"] > 0
    assert {table: here.rows(f"SELECT * FROM {table}") for table in TABLES} == before
    assert (worker.metric("email_ingestion_emails_processed_total"), producer.metric("up")) == (1, None)
    assert worker.metric("email_ingestion_rehearsed_messages_total") == 650
    with own_redis.client() as client:
        assert (client.xlen(Keys().stream), client.xlen(Keys().dlq)) == (0, 0)
    assert len(list((here.folder / "out").rglob("*.eml"))) == 1
    _sandbox_runs(here, sandbox)
    done = typed(here, "loadtest", "--emails", "30", "--rate", "200", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["way"], summary["delivered"]) == ("sandbox", 30)
    assert len(here.rows()) == 31
    assert summary["seconds"] >= 29 / 200
    assert "latency_seconds" in typed(here, "loadtest", "--emails", "1").stdout
    (here.folder / "data" / "sandbox.env").unlink()
    own_redis.kill()
    away = typed(here, "loadtest", "--emails", "5")
    assert (away.returncode, "Traceback" in away.stderr, "Redis" in away.stderr) == (2, False, True)


def test_rehearsals_that_cannot_be_recorded_are_told_and_buried_nowhere(
    here: Place, own_redis: RedisServer, sandbox: RunningSandbox
) -> None:
    here.set(WORKER_MAX_RETRIES=0)
    worker = here.worker()
    until(lambda: worker.get("/ready")[0] == 200, "it is up")
    here.rows("CREATE TRIGGER refuse BEFORE INSERT ON emails BEGIN SELECT RAISE(ABORT, 'no'); END")
    done = typed(here, "loadtest", "--emails", "3", "--json")
    summary = json.loads(done.stdout)
    assert (done.returncode, summary["failed"], summary["delivered"]) == (1, 3, 0), done.stderr
    with own_redis.client() as client:
        assert (client.xlen(Keys().stream), client.xlen(Keys().dlq)) == (0, 0)


def test_a_canary_flies_and_is_missed(here: Place, own_redis: RedisServer) -> None:
    here.set(CANARY_SECONDS=1)
    producer, worker = here.producer(), here.worker()
    until(lambda: producer.metric("email_ingestion_canary_latency_seconds"), "one came through")
    assert producer.metric("email_ingestion_canary_last_success_timestamp_seconds") > 0
    worker.kill()
    until(lambda: _depth(own_redis) == 1, "one waits for a worker")
    worker = here.worker()
    until(lambda: worker.metric("email_ingestion_rehearsed_messages_total"), "a new worker takes it")
    assert here.rows() == []


def _depth(redis: RedisServer) -> int:
    with redis.client() as client:
        return int(client.xlen(Keys().stream))
