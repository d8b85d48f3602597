"""What a process reads of Redis each second, whatever Redis is like."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path

import pytest

from email_ingestion.breaker import Breaker, BreakerPolicy
from email_ingestion.errors import RedisConnectionError
from email_ingestion.ops.observers import Ops, open_ops
from email_ingestion.ops.status_collector import StatusCollector, peers
from email_ingestion.ops.status_records import Identity, Names
from email_ingestion.overrides import OperatorOverrides
from email_ingestion.stream import Keys, RedisLink, connect, read_presences
from tests.servers.processes import until
from tests.servers.redis import RedisServer

ME = Identity("worker", "here-worker-1", "1", 1)


@pytest.fixture
def ops(tmp_path: Path) -> Ops:
    return open_ops(ME, Names({"redis": True}, {"collect": 30.0}, breakers=("redis",)), list)


def collector(redis: RedisServer, ops: Ops, pid_dir: Path) -> StatusCollector:
    breaker = Breaker("redis", BreakerPolicy(), (RedisConnectionError,), lambda _: None)
    link = RedisLink(connect(redis.url, "test"), Keys(), breaker)
    return StatusCollector(
        link,
        ops,
        ME,
        "http://127.0.0.1:1",
        pid_dir,
        overrides=OperatorOverrides("worker"),
        ledger_fingerprint=lambda: None,
        refuse=print,
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
