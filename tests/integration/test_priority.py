"""Urgent mail on a real Redis: it goes first, what is below waits untouched, and every promise of the stream holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from email_ingestion.records import Cursor, RawMessage
from email_ingestion.stream import GROUP, Appender, Consumer, DeadLetterQueue, Keys, RedisLink
from email_ingestion.stream.dead_letter_file import read_entries, write_entries
from email_ingestion.stream.dead_letters import dead_letter_fields
from email_ingestion.stream.pending import PendingEntries
from email_ingestion.stream.queue_dump import QueueDump, entry_bytes
from email_ingestion.stream.synthetic import MAX_ENTRY_ID
from tests.servers.links import link, message
from tests.servers.redis import RedisServer

KEYS = Keys()
LEAST = 6  # above the normal one


@pytest.fixture
def redis_link(redis_server: RedisServer) -> RedisLink:
    return link(redis_server.url)


def queue(redis_link: RedisLink, name: str = "one") -> Consumer:
    made = Consumer(redis_link, name, 60)
    made.ensure_group()
    return made


def fill(redis_link: RedisLink, *priorities: int) -> None:
    """Messages with UIDs from 1 on, in this order."""
    appender = Appender(redis_link)
    since = appender.restart_cursor("default", "INBOX", Cursor(1, 0))
    letters = [ranked(uid, priority) for uid, priority in enumerate(priorities, 1)]
    appender.append("default", "INBOX", since, len(letters), letters)


def ranked(uid: int, priority: int) -> RawMessage:
    return replace(message(uid), priority=priority)


def uids(deliveries) -> list[int]:
    return [each.message.envelope.uid for each in deliveries]


def index(redis_link: RedisLink) -> dict[str, int]:
    return {
        entry.decode(): -int(score) for entry, score in redis_link.client.zrange(KEYS.priority, 0, -1, withscores=True)
    }


def counts(redis_link: RedisLink) -> list[tuple[str, int]]:
    found = redis_link.client.xpending_range(KEYS.stream, GROUP, "-", "+", 100)
    return [(entry["consumer"].decode(), entry["times_delivered"]) for entry in found]


def test_the_highest_priority_goes_first_and_of_one_the_oldest(redis_link: RedisLink):
    fill(redis_link, 5, 7, 5, 9, 2, 9)
    one = queue(redis_link)
    found = one.read_urgent(3, LEAST)
    assert (uids(found), [each.attempt for each in found]) == ([4, 6, 2], [1, 1, 1])
    assert [each.message.priority for each in found] == [9, 9, 7]
    assert one.read_urgent(3, LEAST) == []
    assert uids(one.read_new(10, block=False)) == [1, 3, 5]
    assert one.read_new(10, block=False) == []
    assert redis_link.client.xlen(KEYS.stream) == 6


def test_what_is_taken_ahead_is_not_taken_away_when_its_turn_comes(redis_link: RedisLink):
    fill(redis_link, 5, 9, 5, 5)
    one, two = queue(redis_link), queue(redis_link, "two")
    (urgent,) = one.read_urgent(10, LEAST)
    one.extend([urgent.id])  # an attempt failed
    assert two.read_urgent(10, LEAST) == []
    assert uids(two.read_new(2, block=False)) == [1]
    assert uids(two.read_new(10, block=False)) == [3, 4]
    assert counts(redis_link) == [("two", 1), ("one", 1), ("two", 1), ("two", 1)]
    assert one.ack([urgent]) == []


def test_new_mail_behind_what_was_taken_ahead_is_not_passed_over(redis_link: RedisLink):
    fill(redis_link, 9)
    one = queue(redis_link)
    assert uids(one.read_urgent(10, LEAST)) == [1]
    assert one.read_urgent(10, LEAST) == []
    assert one.read_new(10, block=False) == []
    Appender(redis_link).append_missing([ranked(2, 5), ranked(3, 8)], MAX_ENTRY_ID)
    two = queue(redis_link, "two")
    assert uids(two.read_urgent(10, LEAST)) == [3]
    assert uids(one.read_urgent(10, LEAST) or one.read_new(10, block=False)) == [2]


def test_what_a_crashed_worker_had_taken_ahead_is_found(redis_link: RedisLink):
    fill(redis_link, 5, 9)
    gone, one = queue(redis_link, "gone"), queue(redis_link)
    gone.read_urgent(10, LEAST)
    for entry, consumer in ((each.id, each.consumer) for each in PendingEntries(redis_link).entries()):
        redis_link.client.xclaim(KEYS.stream, GROUP, consumer, 0, [entry], idle=61_000, retrycount=1, justid=True)
    (found,) = one.claim_due(10)
    assert (found.message.envelope.uid, found.attempt, found.foreign) == (2, 2, True)


def test_what_is_below_the_least_priority_waits_and_has_spent_nothing(redis_link: RedisLink):
    fill(redis_link, 5, 2, 9)
    one = queue(redis_link)
    found = one.read_new(10, block=False)
    one.release([each.id for each in found])
    assert uids(one.claim_due(10, 8)) == [3]
    assert uids(one.claim_due(10, 5)) == [1]
    assert one.claim_due(10, 5) == []
    assert sorted(counts(redis_link)) == [("one", 0), ("one", 1), ("one", 1)]
    (last,) = one.claim_due(10)
    assert (last.message.envelope.uid, last.attempt) == (2, 1)


def test_the_depth_is_told_from_a_priority_on(redis_link: RedisLink):
    fill(redis_link, 5, 2, 9, 5, 7, 0)
    one = queue(redis_link)
    assert [one.depth(least) for least in (0, 1, 2, 3, 5, 6, 8, 10)] == [6, 5, 5, 4, 4, 2, 1, 0]


def test_nothing_is_remembered_of_what_has_left_the_stream(redis_link: RedisLink, tmp_path: Path):
    fill(redis_link, 9, 8, 7, 1)
    one = queue(redis_link)
    completed, buried, _ = one.read_urgent(3, LEAST)
    one.ack([completed])
    assert one.dead_letter(buried, dead_letter_fields("permanent", 1, None, "", "one"))
    (pending_entry,) = PendingEntries(redis_link).entries()
    assert PendingEntries(redis_link).dead_letter(pending_entry, "one")
    assert sorted(index(redis_link).values()) == [1]
    dead_letters = DeadLetterQueue(redis_link)
    letters = [letter.decode() for letter, _ in redis_link.client.xrange(KEYS.dlq)]
    assert sum(dead_letters.replay(letters)) == 2
    assert sorted(index(redis_link).values()) == [1, 7, 8]
    dump, path = QueueDump(redis_link), tmp_path / "queue"
    write_entries(path, dump.entries(), {}, lambda: None, form="email-ingestion queue")
    taken = [(entry_id, entry_bytes(fields)) for entry_id, fields in read_entries(path)]
    assert sum(dump.remove(taken)) == 3
    assert (redis_link.client.xlen(KEYS.stream), index(redis_link)) == (0, {})
    assert sum(added for _, added in dump.refill(read_entries(path))) == 3
    assert uids(one.read_urgent(10, LEAST)) == [2, 3]


def test_an_entry_that_somebody_deleted_is_forgotten(redis_link: RedisLink):
    fill(redis_link, 9, 8)
    redis_link.client.xdel(KEYS.stream, min(index(redis_link)))
    one = queue(redis_link)
    assert uids(one.read_urgent(10, LEAST)) == [2]
    assert len(index(redis_link)) == 1
