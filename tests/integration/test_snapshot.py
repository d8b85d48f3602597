"""A snapshot of a real Redis goes back exactly, whatever is in it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from email_ingestion.errors import OperationFailed, PermanentError, RedisConnectionError
from email_ingestion.fleet.redis_server import scratch_redis
from email_ingestion.records import Cursor
from email_ingestion.stream import (
    GROUP,
    Appender,
    Consumer,
    DeadLetterQueue,
    Keys,
    SnapshotRestore,
    open_link,
    read_gauges,
    read_server_info,
    read_snapshot,
)
from email_ingestion.stream.dead_letters import dead_letter_fields
from email_ingestion.stream.snapshot import SnapshotTorn, Tally
from tests.servers.links import link, message
from tests.servers.redis import RedisServer, running_redis

KEYS = Keys()


def fill(server: RedisServer, waiting: int, pending: int, dead: int) -> None:
    """A stream in use: entries nobody had, entries two workers have, dead letters, cursors."""
    appender = Appender(link(server.url))
    since = appender.restart_cursor("default", "INBOX", Cursor(1, 0))
    uid = 0
    while uid < waiting + pending + dead:
        upto = min(uid + 200, waiting + pending + dead)
        batch = [message(number) for number in range(uid + 1, upto + 1)]
        _, since = appender.append("default", "INBOX", since, upto, batch)
        uid = upto
    consumer = Consumer(link(server.url), "here-worker-1", 60.0)
    for each in consumer.read_new(dead, block=False) if dead else []:
        assert consumer.dead_letter(each, dead_letter_fields("permanent", 1, PermanentError("no"), "", "here-worker-1"))
    taken = consumer.read_new(pending // 2, block=False) if pending else []
    other = Consumer(link(server.url), "there-worker-1", 60.0)
    rest = other.read_new(pending - len(taken), block=False) if pending else []
    assert len(taken) + len(rest) == pending


def snapshot(server: RedisServer, prefix: str = "") -> tuple[list[dict], dict]:
    tally = Tally()
    lines = [tally.count(line) for line in read_snapshot(open_link(server.url, "test"), prefix)]
    return lines, tally.summary()


def restore(server: RedisServer, lines: list[dict], summary: dict) -> None:
    reload = SnapshotRestore(open_link(server.url, "test"))
    reload.load(lines)
    reload.verify(summary)
    reload.switch()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path / "other") as server:
        yield server


def test_everything_comes_back_as_it_was(redis_server: RedisServer, other: RedisServer):
    fill(redis_server, 30, 12, 5)
    with redis_server.client() as client:
        client.xgroup_create(KEYS.stream, b"strangers\xff", id="0")
        client.xadd(KEYS.dlq, {b"\xff\xfe": b"\x00\xff", "empty": ""})
        client.sadd(KEYS.name("some:set"), "b", "a")
        client.zadd(KEYS.name("some:zset"), {"member": 1.5})
        client.rpush(KEYS.name("some:list"), "2", "1")
        client.set(KEYS.name("held"), "x", ex=1000)
        client.set(KEYS.alive("here"), "{}", ex=15)
        client.set("a stranger's", "x")
        client.xadd(KEYS.name("empty"), {"a": "b"}, id="5-0")
        client.xdel(KEYS.name("empty"), "5-0")
    lines, summary = snapshot(redis_server)
    assert (summary["stream_length"], summary["pending"], summary["dlq_depth"]) == (42, 12, 6)
    restore(other, lines, summary)
    assert snapshot(other)[1] == summary
    with redis_server.client() as before, other.client() as after:
        for key in (KEYS.stream, KEYS.dlq, KEYS.name("empty")):
            old, new = before.xinfo_stream(key), after.xinfo_stream(key)
            for name in ("length", "last-generated-id", "entries-added", "max-deleted-entry-id", "first-entry"):
                assert new[name] == old[name], name
            assert after.xrange(key) == before.xrange(key)
        for one, two in zip(
            before.xpending_range(KEYS.stream, GROUP, "-", "+", 100),
            after.xpending_range(KEYS.stream, GROUP, "-", "+", 100),
            strict=True,
        ):
            assert (one["message_id"], one["consumer"], one["times_delivered"]) == (
                two["message_id"],
                two["consumer"],
                two["times_delivered"],
            )
            assert abs(one["time_since_delivered"] - two["time_since_delivered"]) < 5000
        assert int(after.get(KEYS.volume)) == int(before.get(KEYS.volume))
        assert 900 < after.ttl(KEYS.name("held")) <= 1000
        assert after.exists(KEYS.alive("here"), "a stranger's") == 0
        assert after.dbsize() == before.dbsize() - 2
    assert read_gauges(open_link(other.url, "test")).volume == read_gauges(open_link(redis_server.url, "test")).volume


def test_work_goes_on_where_it_was(redis_server: RedisServer):
    fill(redis_server, 3, 2, 0)
    lines, summary = snapshot(redis_server)
    with redis_server.client() as client:
        client.flushall()
    restore(redis_server, lines, summary)
    appender = Appender(link(redis_server.url))
    at = appender.cursor("default", "INBOX")
    assert at
    assert at.uid == 5
    assert appender.append("default", "INBOX", at, 6, [message(6)])[0] == 1
    mine = Consumer(link(redis_server.url), "here-worker-1", 0.0)
    assert [each.message.envelope.uid for each in mine.read_new(100, block=False)] == [3, 4, 5, 6]
    with redis_server.client() as client:
        assert client.xpending(KEYS.stream, GROUP)["pending"] == 6


def test_what_is_completed_during_the_reading_is_left_out(redis_server: RedisServer, other: RedisServer):
    fill(redis_server, 100, 60, 0)
    consumer = Consumer(link(redis_server.url), "late-worker", 60.0)
    lines = []
    tally = Tally()
    for line in read_snapshot(open_link(redis_server.url, "test")):
        if line.get("type") == "stream":
            assert not consumer.ack(consumer.read_new(10, block=False))
            with redis_server.client() as client:
                first = client.xpending_range(KEYS.stream, GROUP, "-", "+", 10)
                client.xack(KEYS.stream, GROUP, *(each["message_id"] for each in first))
                client.xdel(KEYS.stream, *(each["message_id"] for each in first))
        lines.append(tally.count(line))
    assert (tally.summary()["stream_length"], tally.summary()["pending"]) == (140, 50)
    restore(other, lines, tally.summary())
    # Every entry is delivered again: none is stranded between pending and new.
    late = Consumer(link(other.url), "there-worker-1", 0.0)
    assert len(late.read_new(1000, block=False)) == 90
    with other.client() as client:
        assert client.xpending(KEYS.stream, GROUP)["pending"] == 140


def test_a_replay_during_the_reading_is_noticed(redis_server: RedisServer):
    fill(redis_server, 1, 0, 3)
    dead_letters = DeadLetterQueue(open_link(redis_server.url, "test"))
    reading = read_snapshot(open_link(redis_server.url, "test"))
    assert next(reading)
    assert sum(dead_letters.replay([letter.id for letter in dead_letters.letters()])) == 3
    with pytest.raises(SnapshotTorn):
        list(reading)


def test_a_redis_that_is_flushed_during_the_reading_is_noticed(redis_server: RedisServer):
    fill(redis_server, 200, 0, 3)
    reading = read_snapshot(open_link(redis_server.url, "test"))
    while "id" not in next(reading):
        pass
    with redis_server.client() as client:
        client.flushall()
        client.xadd(KEYS.stream, {"a": "b"}, id="1-1")
    with pytest.raises(OperationFailed, match="lost its data"):
        list(reading)


def test_a_damaged_snapshot_replaces_nothing(redis_server: RedisServer):
    fill(redis_server, 5, 0, 1)
    lines, summary = snapshot(redis_server)
    lost = [line for line in lines if not line.get("id")] + [line for line in lines if line.get("id")][1:]
    reload = SnapshotRestore(open_link(redis_server.url, "test"))
    lost.sort(key=lambda line: (line["key"], lines.index(line)))
    reload.load(lost)
    with pytest.raises(OperationFailed, match="not what the manifest says"):
        reload.verify(summary)
    reload.abandon()
    assert snapshot(redis_server)[1] == summary


def test_a_restore_replaces_what_was_there_in_one_step(redis_server: RedisServer):
    fill(redis_server, 2, 0, 0)
    lines, summary = snapshot(redis_server)
    fill_more = Appender(link(redis_server.url))
    fill_more.append("default", "INBOX", Cursor(1, 2), 9, [message(9)])
    with redis_server.client() as client:
        client.set(KEYS.name("newer"), "x")
    restore(redis_server, lines, summary)
    assert snapshot(redis_server)[1] == summary
    with redis_server.client() as client:
        assert not client.exists(KEYS.name("newer"))


def test_a_snapshot_of_a_busy_redis_misses_nothing(redis_server: RedisServer):
    """Whatever the cursor has passed is in the stream, a dead letter, or was completed before the reading ended."""
    appender, consumer = Appender(link(redis_server.url)), Consumer(link(redis_server.url), "here-worker-1", 60.0)
    since = appender.restart_cursor("default", "INBOX", Cursor(1, 0))
    completed: set[int] = set()
    over = threading.Event()

    def produce() -> None:
        at = since
        while not over.is_set():
            batch = [message(uid, raw=os.urandom(3000)) for uid in range(at.uid + 1, at.uid + 21)]
            _, at = appender.append("default", "INBOX", at, at.uid + 20, batch)

    def work() -> None:
        while not over.is_set():
            taken = consumer.read_new(15, block=False)
            for each in taken[:2]:
                consumer.dead_letter(
                    each, dead_letter_fields("permanent", 1, PermanentError("no"), "", "here-worker-1")
                )
            completed.update(each.message.envelope.uid for each in taken[2:])
            consumer.ack(taken[2:])

    threads = [threading.Thread(target=produce), threading.Thread(target=work)]
    for thread in threads:
        thread.start()
    try:
        read = 0
        while read < 8 or len(completed) <= 100:
            read += 1
            lines, summary = snapshot(redis_server)
            done = set(completed)
            uids = [int(entry["uid"]) for line in lines if "id" in line for entry in [_fields(line)]]
            (cursor,) = (line for line in lines if line["key"] == "cursor:default/INBOX")
            passed = int(dict(zip(cursor["value"][::2], cursor["value"][1::2], strict=True))["uid"])
            assert set(range(1, passed + 1)) <= set(uids) | done
            assert summary["stream_length"] + summary["dlq_depth"] == len(uids)
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _fields(line: dict) -> dict:
    return dict(zip(line["fields"][::2], line["fields"][1::2], strict=True))


def test_a_redis_that_refuses_writes_can_be_read(own_redis: RedisServer, other: RedisServer):
    fill(own_redis, 5, 2, 1)
    own_redis.fail_snapshots()
    lines, summary = snapshot(own_redis)
    assert summary["stream_length"] == 7
    restore(other, lines, summary)


def test_a_replica_can_be_read(own_redis: RedisServer, other: RedisServer):
    fill(own_redis, 5, 2, 1)
    with other.client() as client:
        client.replicaof("127.0.0.1", own_redis.port)
        while client.info("replication").get("master_link_status") != "up":
            time.sleep(0.01)
    assert snapshot(other)[1] == snapshot(own_redis)[1]


def test_what_a_broken_restore_left_is_not_taken_for_data(redis_server: RedisServer):
    fill(redis_server, 5, 2, 1)
    lines, summary = snapshot(redis_server)
    SnapshotRestore(open_link(redis_server.url, "killed")).load(lines[: len(lines) // 2])
    assert snapshot(redis_server)[1] == summary
    restore(redis_server, lines, summary)
    assert snapshot(redis_server)[1] == summary
    with redis_server.client() as client:
        assert not list(client.scan_iter("*restoring*"))


def test_valkey_and_redis_take_each_others_snapshots(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch):
    # Neither takes the other's RDB or DUMP.
    fill(redis_server, 10, 4, 2)
    lines, summary = snapshot(redis_server)
    with monkeypatch.context() as patched:
        patched.setattr("shutil.which", lambda *_: None)
        valkey = scratch_redis()
        address = valkey.__enter__()
    try:
        assert read_server_info(open_link(address, "test"))[0].version.startswith("valkey")
        reload = SnapshotRestore(open_link(address, "test"))
        reload.load(lines)
        reload.verify(summary)
        reload.switch()
        back = list(read_snapshot(open_link(address, "test")))
    finally:
        valkey.__exit__(None, None, None)
    with redis_server.client() as client:
        client.flushall()
    restore(redis_server, back, summary)
    assert snapshot(redis_server)[1] == summary


def test_a_full_redis_can_be_read_and_refuses_to_be_loaded(own_redis: RedisServer):
    fill(own_redis, 50, 5, 2)
    lines, summary = snapshot(own_redis)
    with own_redis.client() as client:
        client.config_set("maxmemory", 1)
        client.config_set("maxmemory-policy", "noeviction")
    assert snapshot(own_redis)[1] == summary
    reload = SnapshotRestore(open_link(own_redis.url, "test"))
    with pytest.raises(RedisConnectionError):
        reload.load(lines)
    reload.abandon()
    assert snapshot(own_redis)[1] == summary
