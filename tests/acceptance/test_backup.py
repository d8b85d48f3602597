"""Backups as an operator makes and restores them, on real servers: what comes back is what was there."""

from __future__ import annotations

import hashlib
import json
import stat
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from email_ingestion.cli.backup import backup as make
from email_ingestion.cli.backup import restore_backup as put_back
from email_ingestion.cli.reconcile import reconcile
from email_ingestion.ledger.store import open_ledger
from email_ingestion.stream import GROUP, Keys, announce_presence
from gmail_sandbox import RunningSandbox
from tests.contract.ledgers import letters
from tests.integration.test_snapshot import fill
from tests.servers.commands import command
from tests.servers.links import link
from tests.servers.postgres import running_postgres
from tests.servers.processes import Place, place, until
from tests.servers.redis import RedisServer, running_redis

KEYS = Keys()


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis with a password and AOF, of which the backup knows no more than its address."""
    with running_redis(tmp_path / "remote", password="correct-horse") as server:
        yield server


@pytest.fixture
def alone(tmp_path: Path, remote: RedisServer) -> Iterator[Place]:
    """Where the commands run; no process of ours does."""
    with place(tmp_path / "alone", "") as made:
        del made.environment["REDIS_URL"]
        made.set(REDIS_HOST="127.0.0.1", REDIS_PORT=remote.port, REDIS_PASSWORD=remote.password)
        yield made


def backup(here: Place, *options: str, code: int = 0) -> dict[str, Any]:
    done = command(here, make, "--json", *options)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def restore(here: Place, file: str, *options: str, code: int = 0) -> str:
    """What it says; an error is one sentence."""
    done = command(here, put_back, "--file", file, *options)
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done.stderr.strip() if code == 2 else done.stdout


def state(client: redis.Redis) -> dict[str, Any]:
    pending = client.xpending_range(KEYS.stream, GROUP, "-", "+", 100_000)
    return {
        "stream": client.xrange(KEYS.stream),
        "pending": [(each["message_id"], each["consumer"], each["times_delivered"]) for each in pending],
        "dead": client.xrange(KEYS.dlq),
        "cursor": client.hgetall(KEYS.cursor("default", "INBOX")),
        "last": client.xinfo_stream(KEYS.stream)["last-generated-id"],
        "group": client.xinfo_groups(KEYS.stream)[0]["last-delivered-id"],
        "volume": client.get(KEYS.volume),
    }


def test_a_flushed_redis_is_restored_and_stays_so(alone: Place, remote: RedisServer):
    fill(remote, 9500, 500, 50)
    with remote.client() as client:
        before = state(client)
        made = backup(alone)
        assert made["verified"] is True
        redis_part = made["redis"]
        assert (redis_part["stream_length"], redis_part["pending"], redis_part["dlq_depth"]) == (10_000, 500, 50)
        assert redis_part["last_ids"]["stream"] == before["last"].decode()
        assert redis_part["last_delivered_ids"] == {f"stream/{GROUP}": before["group"].decode()}
        client.flushall()
        client.set(KEYS.name("lease:default"), "seat 1", ex=100)  # it ends by itself: nothing to save
        said = restore(alone, made["file"])
        assert "equals the manifest" in said
        assert "append-only" not in said
        assert state(client) == before
        assert client.dbsize() == redis_part["key_count"] == redis_part["dbsize"]
    remote.kill()
    remote.start()
    with remote.client() as client:
        assert state(client) == before


def test_a_backup_is_private_and_says_what_is_in_it(alone: Place, remote: RedisServer):
    fill(remote, 5, 2, 1)
    made = backup(alone)
    path = alone.folder / made["file"]
    beside = json.loads(path.with_suffix(".json").read_text())
    assert beside["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert {member["name"] for member in beside["files"]} == {"redis.jsonl.zst"}
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert remote.password.encode() not in path.read_bytes()
    listed = alone.run("scripts/backup.py", "--list", "--json")  # the scripts themselves, found from anywhere
    assert [each["file"] for each in json.loads(listed.stdout)] == [made["file"]]
    assert made["file"] in alone.run("scripts/restore.py", "--list").stdout


def test_what_cannot_be_trusted_is_refused_and_changes_nothing(alone: Place, remote: RedisServer, tmp_path: Path):
    fill(remote, 200, 20, 5)
    path = alone.folder / backup(alone)["file"]
    whole = path.read_bytes()
    with remote.client() as client:
        client.flushall()
    for size in (0, 400, 3000, len(whole) // 2, len(whole) - 11_000):
        path.write_bytes(whole[:size])
        assert "damaged" in restore(alone, str(path), code=2)
    path.write_bytes(whole[:-9000] + bytes([whole[-9000] ^ 1]) + whole[-8999:])
    assert "damaged" in restore(alone, str(path), "--rehearse", code=2)
    foreign = tmp_path / "foreign.tar"
    foreign.write_bytes(b"PK\x03\x04" + bytes(10_000))
    assert "no backup" in restore(alone, str(foreign), code=2)
    assert "cannot read" in restore(alone, str(tmp_path / "none.tar"), code=2)
    with remote.client() as client:
        assert client.dbsize() == 0


def test_a_redis_in_use_is_saved_before_it_is_replaced(alone: Place, remote: RedisServer):
    fill(remote, 5, 0, 0)
    with remote.client() as client:
        before = state(client)
        made = backup(alone)
        client.set(KEYS.replayed, 7)
        newer = state(client)
        assert "would refuse: Redis is not empty" in restore(alone, made["file"], "--dry-run", code=1)
        assert "--force" in restore(alone, made["file"], code=2)
        assert state(client) == newer
        rehearsed = restore(alone, made["file"], "--rehearse")
        assert "nothing was changed" in rehearsed
        assert client.get(KEYS.replayed) == b"7"
        saved = json.loads(restore(alone, made["file"], "--force", "--json"))["saved"]
        assert state(client) == before
        assert not client.exists(KEYS.replayed)
        assert not list(client.scan_iter("*restoring*"))
        restore(alone, saved, "--force")
        assert client.get(KEYS.replayed) == b"7"
        assert state(client) == newer
    assert [json.loads(line)["result"] for line in (alone.folder / "logs" / "audit.log").read_text().splitlines()] == [
        *("started", "failed"),
        *("started", "done"),
        *("started", "done"),
    ]


def test_old_backups_go_after_a_new_one_is_proven_and_never_the_last(alone: Place, remote: RedisServer):
    fill(remote, 1, 0, 0)
    first = backup(alone)
    (alone.folder / "backups" / "email-ingestion-notes.tar").write_text("mine")
    remote.freeze()
    try:
        done = command(alone, make, "--retention-days", "0")
    finally:
        remote.thaw()
    assert done.returncode == 2
    assert "Redis does not answer" in done.stderr
    assert (alone.folder / first["file"]).exists()
    second = backup(alone, "--retention-days", "0")
    assert second["deleted"] == [first["file"]]
    left = {path.name for path in (alone.folder / "backups").iterdir()}
    name = Path(second["file"]).name
    assert left == {name, name.replace(".tar", ".json"), "email-ingestion-notes.tar"}


def test_an_older_backup_loses_nothing_and_doubles_nothing(
    here: Place, own_redis: RedisServer, sandbox: RunningSandbox
):
    def deliver(*numbers: int) -> None:
        for number in numbers:
            sandbox.deliver(b"Subject: letter %d\r\n\r\nhello %d\r\n" % (number, number))

    deliver(*range(30))
    assert here.run("producer.py", "--once").returncode == 0
    made = backup(here)
    assert made["redis"]["stream_length"] == 30
    deliver(*range(30, 50))
    producer, worker = here.producer(), here.worker()
    until(lambda: len(here.rows()) == 50, "50 messages in the database")
    # Both see the backup, and while they run nothing is restored.
    name = "email_ingestion_backup_last_success_timestamp_seconds"
    for process in (producer, worker):
        assert until(lambda process=process: process.metric(name), "the backup is seen") > 1_700_000_000
    refused = restore(here, made["file"], "--force", code=2)
    assert "producer is running here" in refused
    assert "stop.sh" in refused
    assert (producer.terminate(), worker.terminate()) == (0, 0)
    with own_redis.client() as client:
        client.flushall()
        announce_presence(
            link(own_redis.url), {"component": "worker", "instance": "elsewhere", "pid": 1, "seen": time.time()}
        )
        assert "elsewhere was alive" in restore(here, made["file"], code=2)
        client.flushall()
    restore(here, made["file"])
    assert command(here, reconcile, "--repair").returncode == 0
    assert here.run("producer.py", "--once").returncode == 0
    assert here.run("worker.py", "--drain").returncode == 0
    rows = here.rows()
    assert len(rows) == len({row[0] for row in rows}) == len({row[1] for row in rows}) == 50
    with own_redis.client() as client:
        assert client.xlen(KEYS.stream) == client.xlen(KEYS.dlq) == 0
    assert command(here, reconcile).returncode == 0


def test_a_lost_database_comes_back_with_redis(alone: Place, remote: RedisServer):
    fill(remote, 3, 0, 0)
    url = f"sqlite:///{alone.folder}/data/email_ingestion.db"
    with closing(open_ledger(url)) as ledger:
        ledger.record(letters(*range(1, 21)))
    made = backup(alone)
    assert made["database"]["rows"]["emails"] == 20
    for path in (alone.folder / "data").iterdir():
        path.unlink()
    with remote.client() as client:
        client.flushall()
    alone.set(DATABASE_URL="postgresql+psycopg://nobody@nowhere.example/mail")
    refused = restore(alone, made["file"], "--dry-run", code=1)
    assert "would refuse: the backup holds a sqlite database, DATABASE_URL names postgresql" in refused
    assert "restore it there" in restore(alone, made["file"], "--force", code=2)
    del alone.environment["DATABASE_URL"]
    with remote.client() as client:
        assert client.dbsize() == 0
    assert "20 messages were missing" in restore(alone, made["file"])
    with closing(open_ledger(url)) as ledger:
        assert ledger.count() == 20


def test_a_ledger_in_postgresql_is_backed_up_and_comes_back(alone: Place, remote: RedisServer):
    fill(remote, 3, 0, 0)
    with running_postgres() as url:
        alone.set(DATABASE_URL=url)
        with closing(open_ledger(url)) as ledger:
            ledger.record(letters(*range(1, 21)))
            made = backup(alone)
            assert made["database"]["kind"] == "postgresql"
            assert made["database"]["rows"]["emails"] == 20
            ledger.record(letters(21))
        with remote.client() as client:
            client.flushall()
        assert "0 messages were missing" in restore(alone, made["file"])
        with closing(open_ledger(url)) as ledger:
            assert ledger.count() == 21


def test_a_directory_that_cannot_be_written_is_named(alone: Place):
    done = command(alone, make, "--output-dir", "/proc/nowhere")
    assert (done.returncode, "/proc/nowhere" in done.stderr, "Traceback" in done.stderr) == (78, True, False)
