"""A server dies and another takes its place: the same objects go on, in this very process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from redis.crc import key_slot

from email_ingestion.breaker import Breaker, BreakerPolicy
from email_ingestion.errors import CircuitBreakerError, ConfigurationError, RedisConnectionError
from email_ingestion.records import Cursor
from email_ingestion.settings import RedisAddress
from email_ingestion.stream import (
    Appender,
    Consumer,
    Keys,
    RedisLink,
    connect,
    open_link,
    read_gauges,
    read_server_info,
    server_url,
)
from tests.servers.links import link, message
from tests.servers.processes import PATIENCE
from tests.servers.redis_fleet import ClusterFleet, SentinelFleet, running

T = TypeVar("T")


def at_last(call: Callable[[], T]) -> T:
    """The result of `call`, made again while Redis is away."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return call()
        except RedisConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def go_on(appender: Appender, consumer: Consumer, account: str) -> None:
    """Append a message and take it through to its end."""
    since = at_last(lambda: appender.restart_cursor(account, "INBOX", Cursor(1, 0)))
    uid = since.uid + 1
    at_last(lambda: appender.append(account, "INBOX", since, uid, [message(uid, account=account)]))
    found = []
    while not found:
        found = at_last(lambda: consumer.read_new(10))
    assert [(each.message.envelope.account, each.message.envelope.uid) for each in found] == [(account, uid)]
    assert at_last(lambda: consumer.ack(found)) == []


def test_behind_sentinel_what_is_promoted_is_written_to(tmp_path: Path):
    with running(SentinelFleet(tmp_path, 2.0)) as fleet:
        mine = link(fleet.address(3))
        appender, consumer = Appender(mine), Consumer(mine, "here-worker-1", 60.0)
        go_on(appender, consumer, "sales")
        gone = fleet.master()
        gone.kill()
        go_on(appender, consumer, "sales")
        assert fleet.master() is not gone
        assert len(read_server_info(mine)) == 1
        address = replace(fleet.address(), url="redis://me:p%2Fw@127.0.0.1:1/2")
        assert server_url(address) == f"redis://me:p%2Fw@127.0.0.1:{fleet.master().port}/2"
        mine.client.close()


def test_without_a_sentinel_that_answers_redis_is_away():
    alone = open_link(RedisAddress("redis://", 1, "sentinel", (("127.0.0.1", 1),), "mail"), "test")
    with pytest.raises(RedisConnectionError, match="No master found"):
        read_gauges(alone)


def test_in_a_cluster_a_slot_moves_and_a_master_dies(tmp_path: Path):
    with running(ClusterFleet(tmp_path, 3.0)) as fleet:
        mine = link(fleet.address(3))
        appender, consumer = Appender(mine), Consumer(mine, "here-worker-1", 60.0)
        for account in ("a0", "a1", "a2", "a3"):
            go_on(appender, consumer, account)
        keys = mine.keys_for("a0")
        slot = key_slot(keys.tag.encode())
        here = slot * 3 // 16384
        there = fleet.servers[(here + 1) % 3]
        fleet.move_slot(slot, fleet.servers[here], there)
        go_on(appender, consumer, "a0")
        assert read_gauges(mine).depth == 0
        there.kill()
        for account in ("a0", "a1", "a2", "a3"):
            go_on(appender, consumer, account)
        mine.client.close()


def test_a_cluster_that_is_away_at_the_start_is_waited_for():
    absent = RedisAddress("redis://127.0.0.1:1", 2, "cluster", (("127.0.0.1", 1),))
    with pytest.raises(RedisConnectionError):
        Appender(link(absent)).backlog()


def test_a_trial_is_made_at_once_when_another_server_has_taken_over():
    now = [0.0]
    breaker = Breaker("redis", BreakerPolicy(1, 30.0, 1), (RedisConnectionError,), lambda _: None, lambda: now[0])
    away = RedisLink(connect("redis://127.0.0.1:1", "test"), Keys(), breaker)
    with pytest.raises(RedisConnectionError):
        away.call(away.client.ping)
    with pytest.raises(CircuitBreakerError):
        breaker.run(lambda: "works")
    breaker.allow_probe()
    assert breaker.run(lambda: "works") == "works"
    assert breaker.closed


@pytest.mark.parametrize("mode", ["standalone", "sentinel", "cluster"])
def test_an_address_that_is_none_is_refused(mode: str):
    with pytest.raises(ConfigurationError, match="no address like"):
        connect(RedisAddress("http://redis", 1, mode, (("127.0.0.1", 1),), "mail"), "test")  # type: ignore[arg-type]
