"""Orders to all processes, in Redis: they end by its clock, and what is not ours orders nothing."""

from __future__ import annotations

import time

import pytest

from email_ingestion.errors import RedisConnectionError
from email_ingestion.overrides import Override
from email_ingestion.stream import Keys, RedisLink, SharedOverrides, check_writable
from tests.servers.links import link
from tests.servers.redis import RedisServer

KEY = Keys().control


@pytest.fixture
def redis_link(redis_server: RedisServer) -> RedisLink:
    return link(redis_server.url)


def test_an_order_holds_until_it_is_taken_back(redis_link: RedisLink):
    orders = SharedOverrides(redis_link)
    orders.set("level", Override("MINIMAL", 600, "ada"))
    orders.set("pause:worker", Override("", 60, "bob"))
    read = orders.read()
    assert (read["level"].value, read["level"].by, read["pause:worker"].by) == ("MINIMAL", "ada", "bob")
    assert 595 < read["level"].seconds <= 600
    orders.clear("level")
    assert orders.read().keys() == {"pause:worker"}
    assert 55_000 < redis_link.client.pttl(KEY) <= 60_000


def test_an_order_ends_and_its_key_goes_with_the_last_one(redis_link: RedisLink):
    SharedOverrides(redis_link).set("level", Override("DEGRADED", 0.05, "ada"))
    deadline = time.monotonic() + 10
    while redis_link.client.exists(KEY):
        assert time.monotonic() < deadline
    assert SharedOverrides(redis_link).read() == {}


def test_what_is_not_ours_orders_nothing_and_is_removed(redis_link: RedisLink):
    redis_link.client.hset(
        KEY, mapping={"level": "MINIMAL", "pause:worker": "[]", "pause:producer": '{"ends_ms": "x"}'}
    )
    orders = SharedOverrides(redis_link)
    assert orders.read() == {}
    orders.set("level", Override("DEGRADED", 60, "ada"))
    assert redis_link.client.hkeys(KEY) == [b"level"]


def test_a_redis_that_takes_no_writes_is_found_out(own_redis: RedisServer):
    check_writable(link(own_redis.url))
    own_redis.client().config_set("min-replicas-to-write", 1)
    with pytest.raises(RedisConnectionError):
        check_writable(link(own_redis.url))
