"""The stream on a real Redis: nothing is doubled by a resend, nothing is left out after a restore."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from bench.crash_matrix.clock import SettableClock
from email_ingestion.errors import CircuitBreakerError, RedisConnectionError, StaleCursor
from email_ingestion.records import Cursor
from email_ingestion.stream import EMPTY_BACKLOG, GROUP, Appender, Consumer, Keys, read_gauges
from email_ingestion.stream.clients import BLOCK_SECONDS
from tests.servers.links import link, message
from tests.servers.redis import RedisServer

KEYS = Keys()
LEASE = 60.0


@pytest.fixture
def appender(redis_server: RedisServer) -> Appender:
    made = Appender(link(redis_server.url))
    made.restart_cursor("default", "INBOX", Cursor(1, 0))
    return made


@pytest.fixture
def consumer(redis_server: RedisServer) -> Consumer:
    return _consumer(redis_server, "here-worker-1")


def _consumer(server: RedisServer, name: str) -> Consumer:
    made = Consumer(link(server.url), name, LEASE)
    made.ensure_group()
    return made


def _put(appender: Appender, *uids: int, since: int = 0) -> tuple[int, Cursor]:
    return appender.append("default", "INBOX", Cursor(1, since), uids[-1], [message(uid) for uid in uids])


def _age(server: RedisServer, seconds: float, name: str = "here-worker-1") -> None:
    """Let everything pending under a name be idle for so long, without waiting."""
    with server.client() as client:
        for entry in client.xpending_range(KEYS.stream, GROUP, "-", "+", 5000, consumername=name):
            options = ("IDLE", int(seconds * 1000), "RETRYCOUNT", entry["times_delivered"], "JUSTID")
            client.execute_command(
                "XCLAIM", KEYS.stream, GROUP, name, 0, entry["message_id"], *options, parse_justid=True
            )


def _uids(deliveries) -> list[int]:
    return [each.message.envelope.uid for each in deliveries]


def test_a_message_comes_out_as_it_went_in(appender: Appender, consumer: Consumer):
    sent = message(7, raw=bytes(range(256)) * 10, gm_msgid=2**63 + 5, gm_thrid=None)
    appender.append("default", "INBOX", Cursor(1, 0), 7, [sent])
    assert [each.message for each in consumer.read_new(10)] == [sent]


def test_a_resent_batch_adds_nothing(appender: Appender):
    assert _put(appender, 1, 2, 3) == (3, Cursor(1, 3))
    assert _put(appender, 1, 2, 3) == (0, Cursor(1, 3))
    assert appender.backlog().depth == 3


def test_an_overlapping_batch_of_a_second_producer_adds_only_what_is_new(appender: Appender):
    _put(appender, 1, 2, 3)
    assert _put(appender, 2, 3, 4, 5) == (2, Cursor(1, 5))


def test_the_cursor_moves_over_messages_left_out(appender: Appender):
    added, cursor = appender.append("default", "INBOX", Cursor(1, 0), 99, [message(5)])
    assert (added, cursor.uid) == (1, 99)
    assert appender.cursor("default", "INBOX") == Cursor(1, 99)


@pytest.mark.parametrize("change", ["behind", "gone", "other uidvalidity"])
def test_a_cursor_that_went_back_stops_the_append(appender: Appender, redis_server: RedisServer, change: str):
    _put(appender, 1, 2, 3)
    key = KEYS.cursor("default", "INBOX")
    with redis_server.client() as client:
        match change:
            case "behind":
                client.hset(key, "uid", 1)
            case "gone":
                client.delete(key)
            case _:
                client.hset(key, "uidvalidity", 2)
    with pytest.raises(StaleCursor):
        _put(appender, 4, 5, since=3)
    assert appender.backlog().depth == 3


def test_a_look_that_still_holds_knows_what_was_appended_since(
    appender: Appender, redis_server: RedisServer, consumer: Consumer
):
    _put(appender, 1, 2)
    before = appender.backlog(math.inf)
    _put(appender, 3, 4, 5, since=2)
    _put(appender, 3, 4, 5, since=2)  # adds nothing
    assert appender.backlog(math.inf) == appender.backlog()
    assert (before.depth, appender.backlog().depth) == (2, 5)
    consumer.ack(consumer.read_new(10))
    assert appender.backlog(math.inf).depth == 5
    assert appender.backlog(0.0) == appender.backlog(math.inf) == EMPTY_BACKLOG


def test_restarting_a_cursor_never_moves_one_that_holds(appender: Appender):
    _put(appender, 1, 2, 3)
    assert appender.restart_cursor("default", "INBOX", Cursor(1, 0)) == Cursor(1, 3)
    assert appender.restart_cursor("default", "INBOX", Cursor(2, 0, rescan=8)) == Cursor(2, 0, rescan=8)


def test_mail_added_before_the_group_exists_is_delivered(redis_server: RedisServer, appender: Appender):
    _put(appender, 1, 2)
    assert _uids(_consumer(redis_server, "late").read_new(10)) == [1, 2]


def test_the_group_is_made_again_when_somebody_flushed_redis(
    redis_server: RedisServer, appender: Appender, consumer: Consumer
):
    with redis_server.client() as client:
        client.flushall()
    assert consumer.read_new(10, block=False) == []
    appender.restart_cursor("default", "INBOX", Cursor(1, 0))
    _put(appender, 1)
    assert _uids(consumer.read_new(10)) == [1]


def test_completed_entries_leave_the_stream(appender: Appender, consumer: Consumer):
    _put(appender, 1, 2)
    assert consumer.ack(consumer.read_new(10)) == []
    assert (appender.backlog().depth, appender.backlog().volume) == (0, 0)


def test_an_entry_taken_over_meanwhile_is_not_completed_by_its_old_owner(
    redis_server: RedisServer, appender: Appender, consumer: Consumer
):
    _put(appender, 1)
    mine = consumer.read_new(10)
    _age(redis_server, LEASE + 1)
    theirs = _consumer(redis_server, "there-worker-1").claim_due(10)
    assert consumer.ack(mine) == mine
    assert appender.backlog().depth == 1
    assert _consumer(redis_server, "there-worker-1").ack(theirs) == []


def test_others_wait_for_the_lease_and_the_owner_for_the_back_off(
    redis_server: RedisServer, appender: Appender, consumer: Consumer
):
    _put(appender, 1)
    consumer.read_new(10)
    other = _consumer(redis_server, "there-worker-1")
    _age(redis_server, 0.5)
    assert consumer.claim_due(10) == other.claim_due(10) == []
    _age(redis_server, 2)
    assert other.claim_due(10) == []
    assert [(each.attempt, each.foreign) for each in consumer.claim_due(10)] == [(2, False)]


def test_a_back_off_longer_than_the_lease_holds_for_everybody(
    redis_server: RedisServer, appender: Appender, consumer: Consumer
):
    _put(appender, 1)
    consumer.read_new(10)
    for _ in range(8):  # 256 seconds of back-off after the ninth delivery, the lease is 60
        _age(redis_server, 1000)
        consumer.claim_due(10)
    _age(redis_server, LEASE + 5)
    assert _consumer(redis_server, "there-worker-1").claim_due(10) == []


def test_what_may_have_killed_its_worker_is_taken_alone(
    redis_server: RedisServer, appender: Appender, consumer: Consumer
):
    _put(appender, *range(1, 6))
    consumer.read_new(10)
    _age(redis_server, LEASE + 1)
    other = _consumer(redis_server, "there-worker-1")
    taken = [other.claim_due(10) for _ in range(5)]
    assert [(_uids(each), each[0].attempt) for each in taken] == [([uid], 2) for uid in range(1, 6)]
    assert other.claim_due(10) == []


def test_untouched_entries_are_taken_together_and_spend_no_attempt(
    redis_server: RedisServer, appender: Appender, consumer: Consumer
):
    _put(appender, *range(1, 6))
    taken = consumer.read_new(10)
    consumer.extend([each.id for each in taken], give_back=True)
    assert [each.attempt for each in consumer.claim_due(10)] == [1] * 5
    consumer.release([each.id for each in taken])
    assert [each.attempt for each in _consumer(redis_server, "there-worker-1").claim_due(10)] == [1] * 5


def test_the_whole_pending_list_is_looked_through(redis_server: RedisServer, appender: Appender, consumer: Consumer):
    appender.append("default", "INBOX", Cursor(1, 0), 1200, [message(uid) for uid in range(1, 1201)])
    taken = consumer.read_new(1200)
    _age(redis_server, LEASE + 1)
    consumer.extend([each.id for each in taken[:-1]])
    assert _uids(_consumer(redis_server, "there-worker-1").claim_due(10)) == [1200]


def test_entries_that_redis_forgot_to_whom_it_gave_are_found(
    redis_server: RedisServer, appender: Appender, consumer: Consumer
):
    appender.append("default", "INBOX", Cursor(1, 0), 500, [message(uid) for uid in range(1, 501)])
    taken = consumer.read_new(300)
    consumer.ack(taken[:50])
    with redis_server.client() as client:
        client.xack(KEYS.stream, GROUP, *(each.id for each in taken[100:250]))
    assert consumer.recover_orphans() == 150
    assert consumer.recover_orphans() == 0
    assert _uids(_consumer(redis_server, "there-worker-1").claim_due(200)) == list(range(101, 251))
    assert _uids(consumer.read_new(300)) == list(range(301, 501))


def test_nothing_is_adopted_where_there_is_nothing(redis_server: RedisServer, appender: Appender, consumer: Consumer):
    assert consumer.recover_orphans() == 0
    _put(appender, 1, 2, 3)
    assert consumer.recover_orphans() == 0
    with redis_server.client() as client:
        client.flushall()
    assert consumer.recover_orphans() == 0


def test_a_clock_that_went_back_does_not_stop_the_retries(own_redis: RedisServer, tmp_path: Path):
    clock = SettableClock(tmp_path)
    own_redis.kill()
    own_redis.environment |= clock.environment
    clock.set(3600)
    own_redis.start()
    appender, consumer = Appender(link(own_redis.url)), _consumer(own_redis, "here-worker-1")
    appender.restart_cursor("default", "INBOX", Cursor(1, 0))
    _put(appender, 1)
    consumer.claim_due(10)
    consumer.read_new(10)
    clock.set(0)
    assert consumer.claim_due(10) == []
    clock.set(10)
    assert [each.attempt for each in consumer.claim_due(10)] == [2]


def test_a_heartbeat_keeps_entries_and_counts_no_delivery(
    redis_server: RedisServer, appender: Appender, consumer: Consumer
):
    _put(appender, 1)
    (mine,) = consumer.read_new(10)
    _age(redis_server, LEASE + 1)
    assert consumer.extend([mine.id]) == {mine.id}
    assert _consumer(redis_server, "there-worker-1").claim_due(10) == []
    _age(redis_server, LEASE + 1)
    assert consumer.claim_due(10)[0].attempt == 2


def test_a_heartbeat_does_not_steal_back_what_was_taken_over(
    redis_server: RedisServer, appender: Appender, consumer: Consumer
):
    _put(appender, 1)
    (mine,) = consumer.read_new(10)
    _age(redis_server, LEASE + 1)
    other = _consumer(redis_server, "there-worker-1")
    (theirs,) = other.claim_due(10)
    assert consumer.extend([mine.id]) == set()
    assert other.ack([theirs]) == []


def test_a_buried_entry_keeps_all_its_fields_and_leaves_the_stream(
    redis_server: RedisServer, appender: Appender, consumer: Consumer
):
    _put(appender, 1)
    with redis_server.client() as client:
        before = client.xrange(KEYS.stream)[0][1]
        (mine,) = consumer.read_new(10)
        assert consumer.dead_letter(mine, {"dead_reason": "operator"})
        assert client.xrange(KEYS.dlq)[0][1] == before | {b"dead_reason": b"operator"}
        assert client.xlen(KEYS.stream) == 0
    assert not consumer.dead_letter(mine, {"dead_reason": "operator"})


def test_a_full_redis_refuses_new_mail_but_drains(redis_server: RedisServer, appender: Appender, consumer: Consumer):
    _put(appender, 1, 2, 3)
    with redis_server.client() as client:
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(RedisConnectionError, match="memory"):
                _put(appender, 4, since=3)
            first, second, third = consumer.read_new(10)
            assert consumer.ack([first]) == []
            assert consumer.dead_letter(second, {"dead_reason": "operator"})
            assert consumer.release([third.id]) == 1
        finally:
            client.config_set("maxmemory", 0)
    assert _put(appender, 4, since=3) == (1, Cursor(1, 4))


def test_leaving_the_group_never_drops_a_pending_entry(
    redis_server: RedisServer, appender: Appender, consumer: Consumer
):
    _put(appender, 1)
    consumer.read_new(10)
    consumer.unregister()
    with redis_server.client() as client:
        assert client.xpending(KEYS.stream, GROUP)["pending"] == 1
    _age(redis_server, LEASE + 1)
    consumer.ack(consumer.claim_due(10))
    consumer.unregister()
    with redis_server.client() as client:
        assert client.xinfo_consumers(KEYS.stream, GROUP) == []


def test_an_entry_that_is_not_ours_is_a_delivery_with_the_reason(redis_server: RedisServer, consumer: Consumer):
    with redis_server.client() as client:
        client.xadd(KEYS.stream, {"hello": "world"})
    (found,) = consumer.read_new(10)
    assert found.message is None
    assert "cannot be read" in str(found.unreadable)


def test_the_gauges_tell_what_is_there(redis_server: RedisServer, appender: Appender, consumer: Consumer):
    _put(appender, 1, 2, 3)
    taken = consumer.read_new(2)
    consumer.dead_letter(taken[0], {"dead_reason": "operator"})
    gauges = read_gauges(link(redis_server.url))
    assert (gauges.depth, gauges.pending, gauges.max_deliveries, gauges.dlq_depth) == (2, 1, 1, 1)
    assert gauges.oldest
    assert gauges.oldest_pending == int(taken[1].id.split("-")[0]) / 1000
    assert (gauges.memory_used > 0, gauges.evicted) == (True, 0)


def test_a_dead_redis_is_an_error_of_ours_and_opens_the_breaker(own_redis: RedisServer):
    connection = link(own_redis.url, fail_max=2)
    appender = Appender(connection)
    own_redis.kill()
    for _ in range(2):
        with pytest.raises(RedisConnectionError):
            appender.backlog()
    with pytest.raises(CircuitBreakerError):
        appender.backlog()
    own_redis.start()


def test_a_blocking_read_outlasts_its_wait_in_redis():
    client = link("redis://127.0.0.1:1/0").client
    assert client.connection_pool.connection_kwargs["socket_timeout"] > BLOCK_SECONDS + 3


def test_appended_mail_survives_a_kill_of_redis(own_redis: RedisServer):
    with own_redis.client() as client:
        client.config_set("appendfsync", "always")
    appender = Appender(link(own_redis.url))
    appender.restart_cursor("default", "INBOX", Cursor(1, 0))
    _put(appender, 1, 2)
    own_redis.kill()
    own_redis.start()
    assert appender.backlog().depth == 2
    assert _put(appender, 1, 2) == (0, Cursor(1, 2))
