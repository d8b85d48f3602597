"""A worker with several sinks, killed while one of them is broken: every sink gets everything."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from typing import Any

from email_ingestion.records import Cursor
from email_ingestion.stream import GROUP, Appender, Keys
from tests.servers.commands import told, typed
from tests.servers.links import link, message
from tests.servers.processes import Place, until
from tests.servers.redis import RedisServer
from tests.servers.webhook import SECRET, receiving

COUNT = 60


def test_workers_killed_between_the_sinks_leave_no_sink_without_a_message(here: Place, own_redis: RedisServer):
    intake = Appender(link(own_redis.url))
    intake.restart_cursor("default", "INBOX", Cursor(1, 0))
    intake.append("default", "INBOX", Cursor(1, 0), COUNT, [message(uid) for uid in range(1, COUNT + 1)])
    ids = [message(uid).envelope.email_id for uid in range(1, COUNT + 1)]
    files = here.folder / "out"
    with receiving() as receiver:
        here.set(SINKS=f"webhook,files:{files}", WEBHOOK_URL=receiver.url, WEBHOOK_SECRET=SECRET, WORKER_THREADS=2)
        here.set(WORKER_MAX_RETRIES=1, CB_FAIL_MAX=3, CB_RECOVERY_TIMEOUT=0.5, WORKER_BATCH_SIZE=20)
        receiver.fail(500)
        worker = here.worker()
        until(lambda: len(list(files.rglob("*.json"))) >= COUNT // 2, "half of the files are written")
        worker.kill()
        worker = here.worker()
        until(lambda: len(list(files.rglob("*.json"))) == COUNT, "all files are written, while the webhook fails")
        assert not receiver.taken
        receiver.work()
        until(lambda: len(receiver.taken) >= COUNT // 3, "the webhook has got some")
        worker.kill()
        drained = here.run("worker.py", "--drain")
        assert drained.returncode == 0, drained.stderr
    assert set(receiver.taken) == set(ids)
    assert Counter(row[0] for row in here.rows()) == Counter(ids)
    assert len(list(files.rglob("*.eml"))) == COUNT
    marks = here.rows("SELECT sink, state, count(*) FROM deliveries GROUP BY sink, state ORDER BY sink")
    assert marks == [(f"files:{files}", "delivered", COUNT), ("webhook", "delivered", COUNT)]
    assert intake.backlog().depth == 0


def test_a_worker_that_was_stopped_for_longer_than_its_lease_hands_nothing_more_over(
    here: Place, own_redis: RedisServer
):
    count, threads, seconds = 40, 2, 0.1
    appender = Appender(link(own_redis.url))
    appender.restart_cursor("default", "INBOX", Cursor(1, 0))
    appender.append("default", "INBOX", Cursor(1, 0), count, [message(uid) for uid in range(1, count + 1)])
    with receiving() as receiver:
        here.set(SINKS="webhook", WEBHOOK_URL=receiver.url, WEBHOOK_SECRET=SECRET, WORKER_THREADS=threads)
        here.set(WORKER_LEASE_SECONDS=3, SINK_TIMEOUT_SECONDS=2, WEBHOOK_TIMEOUT_SECONDS=1)

        def answer(_: str) -> tuple[int, dict[str, str]]:
            time.sleep(seconds)  # what a receiver does with a message
            return 204, {}

        receiver.answer = answer
        stopped = here.worker()
        until(lambda: len(receiver.taken) >= 6, "it is in the middle of its claim")
        stopped.process.send_signal(signal.SIGSTOP)
        here.worker(2)
        until(lambda: len(receiver.taken) == count, "the other one has taken over")
        until(
            lambda: here.rows("SELECT count(*) FROM deliveries WHERE state = 'delivered'") == [(count,)],
            "it has marked them all",
        )
        stopped.process.send_signal(signal.SIGCONT)
        until(lambda: "sink_claim_lost" in stopped.log(), "it notices that its claim is lost")
        appender.append("default", "INBOX", Cursor(1, count), count + 1, [message(count + 1)])
        until(lambda: len(receiver.taken) == count + 1, "both go on")
    unmarked = 0.5 / seconds * threads  # half a second's worth, of which it had not written down that they were taken
    assert sum(receiver.asked.values()) <= count + 1 + unmarked + 2 * threads


ROUTES = """
[[routes]]
name = "sevens"
subject = "letter *7"
tags = ["seven", "odd"]
priority = 9
sinks = ["files:out"]

[[routes]]
subject = "letter 8"
skip = true
"""


def test_routes_decide_where_mail_goes_and_can_be_tried_out(here: Place, own_redis: RedisServer):
    (here.folder / "config").mkdir()
    (here.folder / "config" / "settings.toml").write_text(ROUTES)
    intake = Appender(link(own_redis.url))
    intake.restart_cursor("default", "INBOX", Cursor(1, 0))
    intake.append("default", "INBOX", Cursor(1, 0), 9, [message(uid) for uid in (6, 7, 8)])
    here.set(SINKS="files:out,ndjson:all.ndjson")
    drained = here.run("worker.py", "--drain")
    assert drained.returncode == 0, drained.stderr
    names = sorted(path.stem for path in (here.folder / "out").rglob("*.eml"))
    assert names == ["default-gm-1006", "default-gm-1007"]
    lines = (here.folder / "all.ndjson").read_text().splitlines()
    assert [json.loads(line)["subject"] for line in lines] == ["letter 6"]
    rows = here.rows("SELECT subject, tags, priority FROM emails ORDER BY uid")
    assert rows == [("letter 6", "[]", 5), ("letter 7", '["seven", "odd"]', 9), ("letter 8", "[]", 5)]
    (record,) = [json.loads(path.read_text()) for path in (here.folder / "out").rglob("default-gm-1007.json")]
    assert (record["tags"], record["priority"]) == (["seven", "odd"], 9)

    (here.folder / "mail.eml").write_bytes(message(7).raw or b"")
    assert told(here, "route", "test", "mail.eml") == {
        "routes": ["sevens"],
        "sinks": ["database", "files:out"],
        "tags": ["seven", "odd"],
        "priority": 9,
        "skipped": False,
    }
    (here.folder / "config" / "settings.toml").write_text("[[routes]]\nsubjekt = 'x'\n")
    for refused in (here.run("worker.py"), typed(here, "route", "test", "mail.eml")):
        assert (refused.returncode, "did you mean subject?" in refused.stderr) == (78, True), refused.stderr


def test_an_entry_of_a_newer_release_is_kept_until_that_one_reads_it(here: Place, own_redis: RedisServer):
    intake = Appender(link(own_redis.url))
    intake.restart_cursor("default", "INBOX", Cursor(1, 0))
    intake.append("default", "INBOX", Cursor(1, 0), 1, [message(1)])
    with own_redis.client() as client:
        ((_, fields),) = client.xrange(Keys().stream)
        client.xadd(Keys().stream, fields | {b"v": b"99"})
    here.set(WORKER_MAX_RETRIES=0)
    worker = here.worker()
    until(lambda: "newer release" in worker.get("/ready")[1], "/ready tells")
    code, ready = worker.get("/ready")
    assert (code, json.loads(ready)["status"]) == (200, "degraded")
    assert "stream: 1 entries are of a newer release's schema version: an upgrade or a rollback is under way" in ready
    assert "stream entry has version 99" in worker.log()
    assert worker.status()["statistics"]["failed"] == 0
    with own_redis.client() as client:
        until(lambda: client.xlen(Keys().stream) == 1, "the other one is delivered")
        assert client.xlen(Keys().dlq) == 0
        (pending,) = client.xpending_range(Keys().stream, GROUP, "-", "+", 9)
        assert pending["times_delivered"] == 0
    assert len(here.rows()) == 1


HANGS = """
import time
from pathlib import Path

def handle(email):
    print("called", flush=True)
    if email.envelope.uid == 2:
        time.sleep(700)
    Path("taken").open("a").write(email.email_id + "\\n")
"""


def test_a_function_that_hangs_is_seen_at_once_and_its_call_is_ended(here: Place, own_redis: RedisServer):
    appender = Appender(link(own_redis.url))
    appender.restart_cursor("default", "INBOX", Cursor(1, 0))
    first, stuck, last = (message(uid) for uid in (1, 2, 3))
    (here.folder / "hanging.py").write_text(HANGS)
    here.set(SINKS="python:hanging:handle", SINK_TIMEOUT_SECONDS=8, WORKER_MAX_RETRIES=0)
    worker = here.worker()
    appender.append("default", "INBOX", Cursor(1, 0), 3, [first, stuck, last])
    until(lambda: stuck.envelope.email_id in worker.get("/ready")[1], "/ready names the message")
    code, body = worker.get("/ready")
    assert (code, json.loads(body)["status"]) == (200, "degraded")
    assert "sink python:hanging:handle: it has been handling" in body
    until(
        lambda: worker.metric("email_ingestion_sink_waiting_messages") == 2,
        "this and the next are owed during the call",
    )
    assert time.time() - (worker.metric("email_ingestion_sink_oldest_timestamp_seconds") or 0) < 60
    until(lambda: worker.metric("email_ingestion_dlq_messages_total"), "its call is ended and counts as failed")
    until(lambda: (here.folder / "taken").read_text().split()[1:] == [last.envelope.email_id], "the next one is taken")
    until(lambda: json.loads(worker.get("/ready")[1])["status"] == "ready", "it is over")
    assert worker.terminate() == 0
    lines = [json.loads(line) for line in worker.log().splitlines()]  # nothing but JSON
    assert "called" in {line["event"] for line in lines}
    letters = [line for line in lines if line["event"] == "email_dead_lettered"]
    assert [(line["error_type"], line["sink"]) for line in letters] == [("SinkTimedOut", "python:hanging:handle")]


def test_a_message_that_a_sink_hangs_over_is_listed_and_revoked(here: Place, own_redis: RedisServer):
    appender = Appender(link(own_redis.url))
    appender.restart_cursor("default", "INBOX", Cursor(1, 0))
    stuck, behind = message(2).envelope.email_id, message(3).envelope.email_id
    (here.folder / "hanging.py").write_text(HANGS)
    here.set(SINKS="python:hanging:handle", SINK_TIMEOUT_SECONDS=50)
    worker = here.worker()
    appender.append("default", "INBOX", Cursor(1, 0), 3, [message(2), message(3)])

    def listed(*words: str) -> dict[str, dict[str, Any]]:
        done = typed(here, "pending", "list", "--json", *words)
        return {row["email_id"]: row for row in json.loads(done.stdout)}

    row = until(lambda: (row := listed().get(stuck)) and row["since"] and row, "it is listed with the call's beginning")
    assert (row["sink"], row["id"], row["deliveries"]) == ("python:hanging:handle", None, 1)
    assert row["consumer"].endswith("worker-1")
    assert listed("--idle", "1h") == {}
    assert stuck in listed("--consumer", row["consumer"])
    (revoked,) = told(here, "revoke", stuck)
    assert (revoked["worker"], revoked["sinks"]) == ("worker", ["python:hanging:handle"])
    (letter,) = told(here, "dlq", "list")
    assert (letter["id"], letter["email_id"], letter["reason"]) == (revoked["letter"], stuck, "operator")
    taken = here.folder / "taken"
    until(lambda: taken.exists() and taken.read_text().split() == [behind], "the one behind it is taken")
    assert "no worker has this message" in typed(here, "revoke", stuck).stderr

    told(here, "dlq", "replay", "--all")  # it hangs again, and this time its worker dies over it
    until(lambda: listed().get(stuck, {}).get("sink"), "the sink has it again, no longer the stream")
    worker.kill()
    assert listed()[stuck]["consumer"] == row["consumer"]
    (revoked,) = told(here, "revoke", stuck)
    assert (revoked["worker"], revoked["sinks"]) == (None, ["python:hanging:handle"])
    assert listed() == {}
    assert here.rows("SELECT DISTINCT state FROM deliveries WHERE email_id = '" + stuck + "'") == [("dead",)]
    assert [each["reason"] for each in told(here, "dlq", "list")] == ["operator"]
