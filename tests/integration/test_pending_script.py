"""An append whose answer is had later: it holds nobody up, and neither an error nor a break in between loses it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from email_ingestion.breaker import CircuitBreakerError
from email_ingestion.errors import RedisConnectionError, StaleCursor
from email_ingestion.records import Cursor
from email_ingestion.stream import Appender, EntryScanner, Keys, RedisLink
from email_ingestion.stream.clients import CONNECTIONS
from tests.servers.links import link, message
from tests.servers.processes import until
from tests.servers.redis import RedisServer


def appender_of(link: RedisLink) -> Appender:
    made = Appender(link)
    made.restart_cursor("default", "INBOX", Cursor(1, 0))
    return made


def begin(appender: Appender, *uids: int, since: int = 0):
    entries = appender.pack([message(uid) for uid in uids])
    return appender.append_later("default", "INBOX", Cursor(1, since), uids[-1], entries)


def uids_of(redis: RedisServer) -> list[int]:
    return [entry.uid for page in EntryScanner(link(redis.url), Keys()).stream_pages() for entry in page.entries]


def test_it_is_appended_before_anybody_asks(redis_server: RedisServer):
    appender = appender_of(link(redis_server.url))
    assert begin(appender, 1)() == (1, Cursor(1, 1))  # Redis knows the script from now on
    result = begin(appender, 2, 3, since=1)
    until(lambda: uids_of(redis_server) == [1, 2, 3], "they are there")
    assert result() == (2, Cursor(1, 3))


def test_what_redis_refuses_is_told_when_it_is_asked(redis_server: RedisServer):
    appender = appender_of(link(redis_server.url))
    with redis_server.client() as client:
        client.delete(Keys().cursor("default", "INBOX"))
    result = begin(appender, 1)
    with pytest.raises(StaleCursor):
        result()


def test_a_script_that_redis_forgot_is_sent_whole(redis_server: RedisServer):
    appender = appender_of(link(redis_server.url))
    assert begin(appender, 1)() == (1, Cursor(1, 1))
    with redis_server.client() as client:
        client.script_flush()
    assert begin(appender, 2, since=1)() == (1, Cursor(1, 2))
    assert uids_of(redis_server) == [1, 2]


def test_a_redis_that_is_gone_when_it_is_sent_is_asked_once(own_redis: RedisServer):
    shared = link(own_redis.url, fail_max=2)
    appender = appender_of(shared)
    own_redis.kill()
    result = begin(appender, 1)
    with pytest.raises(RedisConnectionError):
        result()
    assert shared.breaker.snapshot().failure_count == 1
    own_redis.start()
    assert begin(appender, 1)() == (1, Cursor(1, 1))


def test_a_redis_that_dies_with_the_answer_costs_nothing_but_a_repetition(own_redis: RedisServer):
    appender = appender_of(link(own_redis.url))
    own_redis.freeze()
    result = begin(appender, 1)
    own_redis.kill()
    with pytest.raises(RedisConnectionError):
        result()
    own_redis.start()
    assert begin(appender, 1)()[1] == Cursor(1, 1)
    assert uids_of(own_redis) == [1]


def test_an_answer_nobody_may_hear_is_nobody_elses(own_redis: RedisServer):
    """The breaker opens after it was sent: the connection is closed, for its next user would read that answer."""
    shared = link(own_redis.url, fail_max=1)
    appender = appender_of(shared)
    own_redis.freeze()
    result = begin(appender, 1)

    def fail() -> None:
        raise RedisConnectionError("for the test")

    with pytest.raises(RedisConnectionError):
        shared.breaker.run(fail)
    with pytest.raises(CircuitBreakerError):
        result()
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(shared.client.ping)
        until(lambda: shared.client.connection_pool.get_connection_count()[1][0], "a connection is in use")
        own_redis.thaw()
        assert asked.result() is True


def test_many_at_once_leave_connections_for_what_else_is_asked(redis_server: RedisServer):
    shared = link(redis_server.url)
    appender_of(shared)
    results = [begin(appender_of(shared), uid, since=0) for uid in range(1, CONNECTIONS + 10)]
    with ThreadPoolExecutor() as threads:
        assert threads.submit(shared.client.ping).result(5) is True
    assert max(result()[1].uid for result in results) == CONNECTIONS + 9
    assert shared.pending_slots.acquire(blocking=False)
