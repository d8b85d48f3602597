"""What is told of the servers, and what is not told."""

from __future__ import annotations

import time
from contextlib import contextmanager

import pytest

from bench.crash_matrix.clock import SettableClock, compiler
from email_ingestion.doctor.redis_checks import check_redis
from email_ingestion.ops.status_collector import describe_offset
from email_ingestion.settings import load_settings
from email_ingestion.stream import read_gauges
from tests.servers.links import link
from tests.servers.redis import RedisServer

DAY = 86_400


@contextmanager
def managed(server: RedisServer):
    """A Redis as providers offer it: neither CONFIG nor INFO."""
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "default", "-info", "-config")
        try:
            yield
        finally:
            client.execute_command("ACL", "SETUSER", "default", "+@all")


def test_what_a_managed_redis_does_not_tell_is_unknown_and_not_a_failure(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    with managed(redis_server):
        gauges = read_gauges(link(redis_server.url))
        findings = {each.check: each.verdict for each in check_redis(load_settings(), time.time, ["default"])}
    assert (gauges.depth, gauges.memory_used, gauges.memory_max, gauges.evicted) == (0, None, None, None)
    assert findings["redis"] == findings["redis eviction"] == findings["redis persistence"] == "unknown"
    assert findings["redis writes"] == findings["redis rights"] == "ok"
    assert "failed" not in findings.values()


@pytest.mark.skipif(not compiler(), reason="there is no C compiler to build the settable clock with")
def test_a_clock_that_differs_from_that_of_redis_is_measured(own_redis: RedisServer, tmp_path):
    assert abs(read_gauges(link(own_redis.url)).clock_offset) < 5
    clock = SettableClock(tmp_path)
    own_redis.kill()
    own_redis.environment |= clock.environment
    clock.set(-DAY)
    own_redis.start()
    offset = read_gauges(link(own_redis.url)).clock_offset
    assert DAY - 60 < offset < DAY + 60
    assert describe_offset("Redis", offset).startswith("this machine's is 864")
    assert describe_offset("Redis", 1.5) is None
