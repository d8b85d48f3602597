from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from email_ingestion.records import Cursor
from email_ingestion.stream import GROUP, Appender, Consumer, DeadLetterQueue, Delivery, RedisLink, codec, read_gauges
from email_ingestion.stream import consumer as consumer_module
from email_ingestion.stream.codec import UnknownVersion
from email_ingestion.stream.dead_letters import dead_letter_fields
from email_ingestion.stream.redelivery import RedisClock
from tests.servers.links import message

LONG = 3600.0  # seconds; longer than every lease and back-off


def uids(deliveries: list[Delivery]) -> list[int]:
    return [delivery.message.envelope.uid for delivery in deliveries if delivery.message]


def test_new_entries_are_read_once_and_gone_after_the_ack(consumer: Consumer, other: Consumer, append: Callable):
    append(1, 2, 3)
    read = consumer.read_new(2, block=False)
    assert (uids(read), [delivery.attempt for delivery in read]) == ([1, 2], [1, 1])
    assert uids(other.read_new(10, block=False)) == [3]
    assert consumer.ack(read) == []
    assert consumer.depth() == 1


def test_an_entry_is_due_after_its_backoff_and_for_others_after_the_lease(
    consumer: Consumer, other: Consumer, append: Callable, age: Callable
):
    append(1)
    consumer.read_new(1, block=False)
    assert consumer.claim_due(10) == other.claim_due(10) == []
    age(30)  # longer than the first back-off, shorter than the lease
    assert other.claim_due(10) == []
    (again,) = consumer.claim_due(10)
    assert (again.attempt, again.foreign) == (2, False)
    age(LONG)
    (claimed,) = other.claim_due(10)
    assert (claimed.attempt, claimed.foreign) == (3, True)


def test_a_worker_that_lost_an_entry_neither_acks_nor_extends_nor_dead_letters_it(
    consumer: Consumer, other: Consumer, append: Callable, age: Callable
):
    append(1)
    mine = consumer.read_new(1, block=False)
    age(LONG)
    theirs = other.claim_due(10)
    assert consumer.ack(mine) == mine
    assert consumer.extend([mine[0].id]) == set()
    assert not consumer.dead_letter(mine[0], {"dead_reason": "permanent"})
    assert consumer.release([mine[0].id]) == 0
    assert other.ack(theirs) == []


def test_suspects_are_claimed_alone_and_untouched_entries_together(
    consumer: Consumer, other: Consumer, append: Callable, age: Callable
):
    append(1, 2, 3, 4)
    read = consumer.read_new(10, block=False)
    assert consumer.extend([delivery.id for delivery in read[:2]], give_back=True) == {read[0].id, read[1].id}
    age(LONG)
    assert [uids(other.claim_due(10)) for _ in range(4)] == [[1, 2], [3], [4], []]


def test_released_entries_are_due_at_once_and_have_spent_no_attempt(
    consumer: Consumer, other: Consumer, append: Callable
):
    append(1, 2)
    read = consumer.read_new(10, block=False)
    assert consumer.release([delivery.id for delivery in read]) == 2
    claimed = other.claim_due(10)
    assert (uids(claimed), [delivery.attempt for delivery in claimed]) == ([1, 2], [1, 1])


def test_urgent_entries_are_read_first_and_not_a_second_time(consumer: Consumer, appender: Appender):
    messages = [replace(message(uid), priority=priority) for uid, priority in ((1, 5), (2, 7), (3, 9), (4, 5))]
    appender.append("default", "INBOX", Cursor(1, 0), 4, messages)
    assert uids(consumer.read_urgent(10, 6)) == [3, 2]
    assert consumer.read_urgent(10, 6) == []
    assert uids(consumer.read_new(10, block=False)) == [1, 4]
    assert consumer.read_new(10, block=False) == []


def test_depth_counts_by_priority(consumer: Consumer, appender: Appender):
    messages = [replace(message(uid), priority=priority) for uid, priority in ((1, 5), (2, 1), (3, 9))]
    appender.append("default", "INBOX", Cursor(1, 0), 3, messages)
    assert [consumer.depth(priority) for priority in (0, 5, 6)] == [3, 2, 1]


def test_entries_that_redis_forgot_are_found_again(
    redis_link: RedisLink, consumer: Consumer, other: Consumer, append: Callable
):
    append(1, 2)
    (forgotten, _) = consumer.read_new(10, block=False)
    keys = redis_link.keys_for("default")
    redis_link.client.xack(keys.stream, "email_processor_group", forgotten.id.rpartition(":")[2])
    assert consumer.recover_orphans() == 1
    assert consumer.recover_orphans() == 0
    assert uids(other.claim_due(10)) == [1]


def test_a_group_that_was_deleted_is_made_anew(redis_link: RedisLink, consumer: Consumer, append: Callable):
    append(1)
    redis_link.client.xgroup_destroy(redis_link.keys_for("default").stream, "email_processor_group")
    assert consumer.read_new(10, block=False) == []
    assert uids(consumer.read_new(10, block=False)) == [1]


def test_an_entry_of_another_program_is_delivered_as_unreadable_and_can_be_dead_lettered(
    redis_link: RedisLink, consumer: Consumer
):
    redis_link.client.xadd(redis_link.keys.stream, {"written_by": "another program"})
    (delivery,) = consumer.read_new(10, block=False)
    assert delivery.unreadable
    assert delivery.email_id == f"entry:{delivery.id}"
    assert consumer.dead_letter(delivery, dead_letter_fields("permanent", 1, delivery.unreadable, "", "here"))
    assert (consumer.depth(), DeadLetterQueue(redis_link).depth()) == (0, 1)


def test_a_consumer_leaves_the_group_only_without_pending_entries(
    redis_link: RedisLink, consumer: Consumer, append: Callable
):
    append(1)
    read = consumer.read_new(1, block=False)
    stream = redis_link.keys_for("default").stream
    consumer.unregister()
    assert len(redis_link.client.xinfo_consumers(stream, "email_processor_group")) == 1
    consumer.ack(read)
    consumer.unregister()
    assert redis_link.client.xinfo_consumers(stream, "email_processor_group") == []


@pytest.mark.parametrize(("seconds", "back"), [(10.0, False), (9.5, False), (8.0, True), (-3600.0, True)])
def test_a_clock_that_went_back_is_noticed(seconds: float, back: bool):
    clock = RedisClock()
    assert clock.went_back(1000.0, now=5.0)  # it may have, before the first reading
    assert clock.went_back(1000.0 + seconds, now=15.0) is back


@pytest.fixture
def append_newer(append: Callable, redis_link: RedisLink) -> Callable[..., str]:
    """Append messages as a release would whose entries ours cannot read; return the key of the stream."""

    def append_newer(*uids: int) -> str:
        append(*uids)
        client, stream = redis_link.client, redis_link.keys_for("default").stream
        for entry_id, fields in client.xrange(stream):
            client.xdel(stream, entry_id)
            client.xadd(stream, fields | {b"v": b"3"})
        return stream

    return append_newer


def test_an_entry_of_a_newer_release_spends_no_attempt_and_goes_to_a_worker_of_that_release(
    redis_link: RedisLink, append_newer: Callable, age: Callable, monkeypatch: pytest.MonkeyPatch
):
    consumer, other = (Consumer(redis_link, name, 60.0) for name in ("here-worker-1", "there-worker-1"))
    consumer.ensure_group()
    stream = append_newer(1, 2)
    for delivery in consumer.read_new(10, block=False):
        assert isinstance(delivery.unreadable, UnknownVersion)
        consumer.leave_to_newer(delivery)

    for _ in range(20):  # more than a message has attempts
        age(LONG)
        for each in (consumer, other):
            assert [each.claim_due(10) for _ in redis_link.partitions] == [[]] * len(redis_link.partitions)
        pending = redis_link.client.xpending_range(stream, GROUP, "-", "+", 10)
        assert [(each["consumer"], each["times_delivered"]) for each in pending] == [(b"newer-release", 0)] * 2
        assert max(each["time_since_delivered"] for each in pending) < LONG * 1000  # not to be looked at again now
    assert read_gauges(redis_link).newer == 2

    monkeypatch.setattr(codec, "VERSION", 3)  # the upgrade
    monkeypatch.setattr(consumer_module, "VERSION", 3)
    age(LONG)
    claimed = other.claim_due(10)
    assert (uids(claimed), [each.attempt for each in claimed]) == ([1, 2], [1, 1])
    assert read_gauges(redis_link).newer == 0


def test_looking_at_entries_of_a_newer_release_is_limited(
    consumer: Consumer, append_newer: Callable, age: Callable, redis_link: RedisLink
):
    stream = append_newer(*range(1, 8))
    for delivery in consumer.read_new(10, block=False):
        consumer.leave_to_newer(delivery)
    age(LONG)
    for looked_at in (3, 6, 7):
        assert consumer.claim_due(3) == []
        pending = redis_link.client.xpending_range(stream, GROUP, "-", "+", 10)
        assert sum(each["time_since_delivered"] < 60_000 for each in pending) == looked_at
