"""What a process reads of Redis each second, whatever Redis is like."""

from __future__ import annotations

import json
import os
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from email_ingestion.breaker import Breaker, BreakerPolicy
from email_ingestion.errors import RedisConnectionError
from email_ingestion.events import SinkBacklog, Started
from email_ingestion.ops.observers import Ops, open_ops
from email_ingestion.ops.peers import peers
from email_ingestion.ops.status_collector import StatusCollector
from email_ingestion.ops.status_records import Identity, Names
from email_ingestion.overrides import OperatorOverrides
from email_ingestion.stream import GROUP, Keys, RedisLink, connect, read_presences
from tests.servers.processes import until
from tests.servers.redis import RedisServer

PRODUCER = Identity("producer", "here-producer", "1")
ME = Identity("worker", "here-worker-1", "1", 1)


@pytest.fixture
def ops(tmp_path: Path) -> Ops:
    return open_ops(ME, Names({"redis": True}, {"collect": 30.0}, breakers=("redis",)), list)


def collector(server: RedisServer, ops: Ops, pid_dir: Path, **more: Any) -> StatusCollector:
    breaker = Breaker("redis", BreakerPolicy(), (RedisConnectionError,), lambda _: None)
    link = RedisLink(connect(server.url, "test"), Keys(), breaker)
    return StatusCollector(
        link,
        ops,
        ops.status.identity,
        "http://127.0.0.1:1",
        pid_dir,
        overrides=OperatorOverrides(ops.status.identity.component),
        ledger_fingerprint=lambda: None,
        refuse=print,
        **more,
    )


def test_a_redis_that_refuses_writes_is_read_and_not_ready(own_redis: RedisServer, ops: Ops, tmp_path: Path) -> None:
    with own_redis.client() as client:
        client.xadd(Keys().stream, {"v": "1"})
    own_redis.fail_snapshots()
    collecting = collector(own_redis, ops, tmp_path)
    with closing(collecting):
        collecting.start()
        until(ops.status.redis, "it is read")
        assert ops.status.redis().stream.depth == 1
        (check,) = ops.status.report()["checks"]
        assert check["status"] == "unhealthy"
        assert "MISCONF" in check["error"]


def test_two_processes_of_one_name_are_told_by_both(redis_server: RedisServer, tmp_path: Path) -> None:
    """As in two containers or cloned machines of one host name, where even the PIDs are the same."""
    both = [open_ops(ME, Names({"redis": True}, {"collect": 30.0}), list) for _ in range(2)]
    twins = [collector(redis_server, ops, tmp_path) for ops in both]

    def told() -> list[bool]:
        return [
            any("another process runs as here-worker-1" in each for each in ops.status.readiness().reasons)
            for ops in both
        ]

    twins[0]._read()
    for _ in range(2):  # one look of the second is the last word of a process that the first has replaced
        assert told() == [False, False]
        twins[1]._read()
        twins[0]._read()
    twins[1]._read()
    assert told() == [True, True]
    for _ in range(2):  # the second ended
        twins[0]._read()
    assert told() == [False, True]


def test_peers_of_other_releases_may_tell_less(redis_server: RedisServer, tmp_path: Path) -> None:
    with redis_server.client() as client:
        client.set(Keys().alive("there-worker-1"), json.dumps({"component": "worker", "instance": "there-worker-1"}))
        client.set(Keys().alive("odd-1"), "not JSON")
        client.set(Keys().alive("odd-2"), "[1]")
        client.set(Keys().alive("odd-3"), json.dumps({"pid": os.getpid()}))
    breaker = Breaker("redis", BreakerPolicy(), (RedisConnectionError,), lambda _: None)
    found = read_presences(RedisLink(connect(redis_server.url, "test"), Keys(), breaker))
    (peer,) = peers("me", found, tmp_path)
    assert (peer.instance, peer.alive, peer.ready, peer.ops_url) == ("there-worker-1", True, None, None)


def producer_ops() -> Ops:
    ops = open_ops(PRODUCER, Names({"redis": True}, {"collect": 30.0}, breakers=("redis",)), list)
    ops.observe(Started("a test"))
    return ops


def died(client: redis.Redis, instance: str, seen: float) -> None:
    """What a worker elsewhere leaves that was killed."""
    record = {"component": "worker", "instance": instance, "host": "there", "stem": "worker", "pid": 7, "seen": seen}
    client.hset(Keys().processes, instance, json.dumps(record))


def lives(client: redis.Redis, instance: str) -> None:
    died(client, instance, time.time())
    client.set(Keys().alive(instance), client.hget(Keys().processes, instance))


def test_a_dead_worker_degrades_the_producer_until_another_lives(redis_server: RedisServer, tmp_path: Path) -> None:
    ops = producer_ops()
    with redis_server.client() as client, closing(collector(redis_server, ops, tmp_path)) as collecting:
        collecting.start()
        until(lambda: ops.status.readiness().status == "ready", "all is well")
        died(client, "pod-a", time.time() - 60)
        until(lambda: ops.status.readiness().status == "degraded", "the dead one is missed")
        (reason,) = ops.status.readiness().reasons
        assert "pod-a (PID 7) is dead" in reason
        assert [(each["instance"], each["alive"]) for each in ops.status.report()["peers"]] == [("pod-a", False)]
        lives(client, "pod-b")
        until(lambda: ops.status.readiness().status == "ready", "it is replaced")
        until(lambda: sorted(client.hkeys(Keys().processes)) == [b"here-producer", b"pod-b"], "it is forgotten")


def test_a_dead_worker_with_something_pending_is_not_forgotten(redis_server: RedisServer, tmp_path: Path) -> None:
    ops = producer_ops()
    keys = Keys()
    with redis_server.client() as client, closing(collector(redis_server, ops, tmp_path)) as collecting:
        client.xgroup_create(keys.stream, GROUP, "0", mkstream=True)
        entry = client.xadd(keys.stream, {"v": "1"})
        client.xreadgroup(GROUP, "pod-a", {keys.stream: ">"})
        died(client, "pod-a", time.time() - 60)
        lives(client, "pod-b")
        collecting.start()
        until(lambda: ops.status.readiness().status == "degraded", "it is missed")
        assert "1 messages pend in its name" in ops.status.readiness().reasons[0]
        client.xack(keys.stream, GROUP, entry)
        until(lambda: ops.status.readiness().status == "ready", "nothing pends any more")


def missing(ops: Ops) -> dict[str, float | None]:
    return {
        kind: ops.metrics.registry.get_sample_value("email_ingestion_missing_processes", {"kind": kind})
        for kind in ("producer", "worker")
    }


def test_a_dead_second_worker_is_counted_until_it_runs_again(redis_server: RedisServer, tmp_path: Path) -> None:
    ops = producer_ops()
    (tmp_path / "worker-2.pid").write_text("4194303\n")  # it was killed, and nobody holds its lock
    with redis_server.client() as client, closing(collector(redis_server, ops, tmp_path)) as collecting:
        lives(client, "pod-b")
        died(client, "pod-a", time.time() - 60)  # replaced: no machine has its PID file
        collecting.start()
        until(lambda: missing(ops) == {"producer": 0, "worker": 1}, "the second worker is missing")
        (tmp_path / "worker-2.pid").unlink()
        until(lambda: missing(ops) == {"producer": 0, "worker": 0}, "nobody is")


def test_the_producer_knows_which_sinks_are_late_from_the_workers(redis_server: RedisServer, tmp_path: Path) -> None:
    theirs, ops = open_ops(ME, Names({"redis": True}, sinks=("database", "webhook")), list), producer_ops()
    theirs.observe(SinkBacklog("webhook", 3, 1000.0))

    def oldest() -> float | None:
        name = "email_ingestion_sink_oldest_timestamp_seconds"
        return ops.metrics.registry.get_sample_value(name, {"sink": "webhook"})

    with (
        closing(collector(redis_server, theirs, tmp_path)) as worker,
        closing(collector(redis_server, ops, tmp_path)) as producer,
    ):
        worker.start()
        producer.start()
        until(lambda: oldest() == 1000.0, "it is told")
        theirs.observe(SinkBacklog("webhook", 0, None))
        until(lambda: oldest() is None, "nothing waits any more")


def test_mail_that_waits_without_a_worker_degrades_the_producer(redis_server: RedisServer, tmp_path: Path) -> None:
    ops = producer_ops()
    with redis_server.client() as client, closing(collector(redis_server, ops, tmp_path)) as collecting:
        client.xadd(Keys().stream, {"v": "1"})
        collecting.start()
        until(lambda: ops.status.readiness().status == "degraded", "no worker came")
        assert ops.status.readiness().reasons == ("worker: none runs although mail waits: ./scripts/start.sh",)
        client.delete(Keys().stream)
        until(lambda: ops.status.readiness().status == "ready", "nothing waits any more")


@pytest.mark.parametrize("orderly", [True, False])
def test_only_a_process_that_stopped_orderly_is_not_missed(
    redis_server: RedisServer, ops: Ops, tmp_path: Path, orderly: bool
) -> None:
    with redis_server.client() as client:
        with closing(collector(redis_server, ops, tmp_path, ended_orderly=lambda: orderly)) as collecting:
            collecting.start()
            until(lambda: client.hexists(Keys().processes, ME.instance), "it is known")
        assert not client.exists(Keys().alive(ME.instance))
        assert client.hexists(Keys().processes, ME.instance) is not orderly


def test_nobody_is_called_for_a_worker_that_took_its_leave_to_start_again(
    own_redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`/ready` tells it within seconds; the alert NoWorkers goes by the number of missing processes."""
    monkeypatch.setattr("email_ingestion.ops.peers.UNATTENDED_SECONDS", 1e-9)
    ops = producer_ops()

    def missing() -> int:
        return collecting._read().missing_processes["worker"]

    with own_redis.client() as client, closing(collector(own_redis, ops, tmp_path)) as collecting:
        client.xadd(Keys().stream, {"v": "1"})
        lives(client, "pod-a")
        assert missing() == 0
        client.delete(Keys().alive("pod-a"))
        client.hdel(Keys().processes, "pod-a")
        assert (missing(), missing()) == (0, 0)
        assert "none runs although mail waits" in ops.status.readiness().reasons[0]
        monkeypatch.setattr("email_ingestion.ops.status_collector.LEAVE_SECONDS", 0.0)
        assert missing() == 1
        lives(client, "pod-a")
        assert missing() == 0
        client.delete(Keys().alive("pod-a"))  # now it was killed
        monkeypatch.setattr("email_ingestion.ops.status_collector.LEAVE_SECONDS", 60.0)
        assert missing() == 1
