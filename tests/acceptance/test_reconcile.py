"""Whatever is lost on the way is found and comes again, once: real processes, a real Redis, and the command itself."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from email_ingestion.stream import Consumer, Keys
from gmail_sandbox import RunningSandbox
from tests.servers.commands import told, typed
from tests.servers.links import link
from tests.servers.processes import Place, Running, until
from tests.servers.redis import RedisServer

KEYS = Keys()
COUNT = 60


@pytest.fixture
def mail(sandbox: RunningSandbox) -> list[bytes]:
    messages = [
        b"Subject: letter %d\r\nMessage-ID: <%d@example.org>\r\n\r\nhello %d\r\n" % (number, number, number)
        for number in range(COUNT)
    ]
    for raw in messages:
        sandbox.deliver(raw)
    return messages


def stored(here: Place) -> list[str]:
    return sorted(row[1] for row in here.rows())


def digests(messages: list[bytes]) -> list[str]:
    return sorted(hashlib.sha256(raw).hexdigest() for raw in messages)


def settled(here: Place, count: int) -> None:
    until(lambda: len(here.rows("SELECT 1 FROM emails")) >= count, f"{count} messages in the database")


def forget_delivered(here: Place, count: int) -> None:
    with closing(sqlite3.connect(here.folder / "data" / "email_ingestion.db", timeout=30)) as database, database:
        database.execute(f"DELETE FROM emails WHERE uid <= {count}")


def once(here: Place, *, work: bool = True) -> None:
    assert here.run("producer.py", "--once").returncode == 0
    if work:
        assert here.run("worker.py", "--drain").returncode == 0


def compared(here: Place, code: int, *options: str) -> dict:
    return told(here, "reconcile", *options, ends=code)


def audited(producer: Running) -> None:
    """Return when a reconciliation that began after now has ended."""
    last = "email_ingestion_reconcile_last_success_timestamp_seconds"
    for _ in range(2):
        seen = producer.metric(last)
        until(lambda seen=seen: producer.metric(last) not in {None, seen}, "another reconciliation")


def test_the_command_names_a_gap_and_fills_it(here: Place, mail: list[bytes], own_redis: RedisServer):
    once(here)
    assert compared(here, 0)["delivered"] == COUNT
    forget_delivered(here, 7)
    found = compared(here, 1)
    assert (found["missing"], found["complete"]) == (7, False)
    assert found["accounts"][0]["missing_uids"] == [1, 2, 3, 4, 5, 6, 7]
    shown = typed(here, "reconcile")
    assert shown.returncode == 1
    assert "UID 1, 2, 3, 4, 5, 6, 7" in shown.stdout
    assert "--repair" in shown.stdout
    assert compared(here, 0, "--repair")["repaired"] == 7
    assert compared(here, 0)["queued"] == 7
    assert here.run("worker.py", "--drain").returncode == 0
    assert compared(here, 0)["delivered"] == COUNT
    assert stored(here) == digests(mail)


def test_two_repairs_at_once_queue_everything_once(here: Place, mail: list[bytes], own_redis: RedisServer):
    once(here)
    forget_delivered(here, 40)
    command = [sys.executable, "-m", "email_ingestion", "reconcile", "--repair", "--json"]
    started = [
        subprocess.Popen(command, cwd=here.folder, env=here.environment, stdout=subprocess.PIPE) for _ in range(2)
    ]
    reports = [json.loads(each.communicate(timeout=60)[0]) for each in started]
    assert [each.returncode for each in started] == [0, 0]
    assert all(report["complete"] for report in reports)
    with own_redis.client() as client:
        assert client.xlen(KEYS.stream) == 40
    assert here.run("worker.py", "--drain").returncode == 0
    assert stored(here) == digests(mail)


def test_the_running_producer_finds_and_fills_gaps_by_itself(here: Place, mail: list[bytes], own_redis: RedisServer):
    here.set(RECONCILE_SECONDS=0.5)
    producer = here.producer()
    until(lambda: producer.metric("email_ingestion_emails_produced_total") == COUNT, "all are queued")
    with own_redis.client() as client:
        client.xdel(KEYS.stream, *[entry for entry, _ in client.xrange(KEYS.stream, count=20)])
    until(lambda: producer.metric("email_ingestion_emails_produced_total") == COUNT + 20, "the lost ones are queued")
    here.worker()
    settled(here, COUNT)
    forget_delivered(here, 30)
    settled(here, COUNT)
    assert stored(here) == digests(mail)
    audited(producer)
    assert producer.metric("email_ingestion_reconcile_missing") == 0
    assert producer.metric("email_ingestion_emails_produced_total") == COUNT + 50
    assert producer.terminate() == 0


def test_audits_while_mail_is_on_its_way_see_no_gap_that_is_none(here: Place, sandbox: RunningSandbox):
    here.set(RECONCILE_SECONDS=0.01, WORKER_BATCH_SIZE=3)
    producer, worker = here.producer(), here.worker()
    messages = [b"Subject: letter %d\r\n\r\nhello\r\n" % number for number in range(400)]
    for raw in messages:
        sandbox.deliver(raw)
    settled(here, len(messages))
    audited(producer)
    told = [json.loads(line) for line in producer.log().splitlines() if "mailbox_reconciled" in line]
    assert len(told) > 3
    assert {each["missing"] for each in told} == {0}
    assert producer.metric("email_ingestion_emails_produced_total") == len(messages)
    assert worker.status()["statistics"]["duplicates"] == 0


def test_a_flush_with_half_of_the_mail_delivered_loses_and_doubles_nothing(
    here: Place, mail: list[bytes], own_redis: RedisServer, sandbox: RunningSandbox
):
    here.set(IMAP_POLL_SECONDS=0.5, WORKER_BATCH_SIZE=5)
    producer, worker = here.producer(), here.worker()
    settled(here, COUNT // 4)
    with own_redis.client() as client:
        client.flushall()
    settled(here, COUNT)
    assert stored(here) == digests(mail)
    until(lambda: producer.status()["stream"]["depth"] == 0, "the stream is empty")
    assert (producer.terminate(), worker.terminate()) == (0, 0)
    assert compared(here, 0)["delivered"] == COUNT


def test_what_was_delivered_is_not_fetched_again_after_a_flush(
    here: Place, mail: list[bytes], own_redis: RedisServer, sandbox: RunningSandbox
):
    once(here)
    with own_redis.client() as client:
        client.flushall()
    once(here)
    assert set(sandbox.with_stats(lambda stats: dict(stats.fetched_messages)).values()) == {1}


def test_dead_letters_are_not_queued_again(here: Place, mail: list[bytes], own_redis: RedisServer):
    once(here, work=False)
    consumer = Consumer(link(own_redis.url), "here-worker-9", 60.0)
    consumer.ensure_group()
    for each in consumer.read_new(10, block=False):
        consumer.dead_letter(each, {"dead_reason": "permanent"})
    with own_redis.client() as client:
        client.delete(KEYS.cursor("default", "[Gmail]/All Mail"))
    once(here)
    report = compared(here, 0, "--repair")
    assert (report["dead"], report["delivered"], report["queued"]) == (10, COUNT - 10, 0)
    with own_redis.client() as client:
        assert client.xlen(KEYS.dlq) == 10


def test_a_new_uidvalidity_under_a_running_producer_loses_and_doubles_nothing(
    here: Place, mail: list[bytes], sandbox: RunningSandbox
):
    here.set(RECONCILE_SECONDS=0.5)
    producer, worker = here.producer(), here.worker()
    settled(here, COUNT)
    sandbox.arm_fault("uidvalidity_reset", mailbox="\\All")
    sandbox.arm_fault("session_expiry")
    sandbox.deliver(b"Subject: another\r\n\r\nhello\r\n")
    settled(here, COUNT + 1)
    until(lambda: producer.metric("email_ingestion_imap_uidvalidity_changes_total") == 1, "it noticed")
    audited(producer)
    assert producer.metric("email_ingestion_reconcile_missing") == 0
    assert worker.status()["statistics"]["duplicates"] == 0
    assert set(sandbox.with_stats(lambda stats: dict(stats.fetched_messages)).values()) == {1}
    assert producer.terminate() == 0


def test_an_old_backup_of_redis_loses_and_doubles_nothing(
    here: Place, mail: list[bytes], own_redis: RedisServer, sandbox: RunningSandbox, tmp_path: Path
):
    once(here, work=False)
    own_redis.kill()
    shutil.copytree(own_redis.directory, tmp_path / "backup")
    own_redis.start()
    assert here.run("worker.py", "--drain").returncode == 0
    more = [b"Subject: later %d\r\n\r\nhello\r\n" % number for number in range(10)]
    for raw in more[:5]:
        sandbox.deliver(raw)
    once(here)
    for raw in more[5:]:
        sandbox.deliver(raw)
    once(here, work=False)
    own_redis.kill()
    own_redis.forget()
    shutil.copytree(tmp_path / "backup", own_redis.directory, dirs_exist_ok=True)
    own_redis.start()
    once(here)
    assert stored(here) == digests(mail + more)
    assert compared(here, 0)["delivered"] == COUNT + 10


def test_a_producer_stops_at_once_in_the_middle_of_an_audit(here: Place, mail: list[bytes], sandbox: RunningSandbox):
    once(here)
    extra = b"Subject: in the way\r\n\r\nhello\r\n"
    sandbox.deliver(extra)
    once(here, work=False)
    forget_delivered(here, COUNT)
    here.set(STREAM_MAX_DEPTH=1)
    producer = here.producer()
    until(lambda: "fetching_held" in producer.log(), "reconciliation waits for capacity")
    assert producer.get("/health")[0] == 200
    assert producer.terminate() == 0
    full = compared(here, 1, "--repair")
    assert (full["missing"], full["repaired"], full["queued"]) == (COUNT, 0, 1)
    here.set(STREAM_MAX_DEPTH=1000)
    assert compared(here, 0, "--repair")["repaired"] == COUNT
    assert here.run("worker.py", "--drain").returncode == 0
    assert stored(here) == digests([*mail, extra])
