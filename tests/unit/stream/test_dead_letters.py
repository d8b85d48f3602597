from __future__ import annotations

from collections.abc import Callable

import pytest

from email_ingestion.errors import PermanentError, TransientError
from email_ingestion.stream import Consumer, DeadLetterQueue, RedisLink
from email_ingestion.stream.dead_letters import (
    UNKNOWN,
    DeadLetterFilter,
    dead_letter_fields,
    group_failures,
    parse_dead_letter,
)
from email_ingestion.stream.keys import parse_entry_id
from email_ingestion.stream.pending import PendingEntries
from email_ingestion.stream.queue_dump import QueueDump, entry_bytes
from tests.servers.links import message


@pytest.fixture
def dead_letters(redis_link: RedisLink) -> DeadLetterQueue:
    return DeadLetterQueue(redis_link)


@pytest.fixture
def dead(consumer: Consumer, append: Callable) -> list[str]:
    """Three dead letters: two of one failure, one of another; returns their messages' identities."""
    append(1, 2, 3)
    read = consumer.read_new(10, block=False)
    for delivery, error in zip(read, (PermanentError("no"), PermanentError("no"), TransientError("away")), strict=True):
        reason = "permanent" if isinstance(error, PermanentError) else "max_retries"
        assert consumer.dead_letter(delivery, dead_letter_fields(reason, delivery.attempt, error, "trace", "here"))
    return [delivery.email_id for delivery in read]


def test_a_dead_letter_keeps_the_message_and_tells_why(dead_letters: DeadLetterQueue, dead: list[str]):
    letters = list(dead_letters.letters())
    assert [letter.email_id for letter in letters] == dead
    first = letters[0]
    assert (first.reason, first.error_type, first.error, first.attempts) == ("permanent", "PermanentError", "no", 1)
    assert (first.account, first.uid, first.traceback, first.instance) == ("default", 1, "trace", "here")
    assert dead_letters.raw(first.id) == message(1).raw
    assert [letter.id for letter in dead_letters.find([first.id, "1-0"])] == [first.id]


def test_failures_are_grouped_by_fingerprint_and_the_filter_selects(dead_letters: DeadLetterQueue, dead: list[str]):
    groups = group_failures(dead_letters.letters())
    assert [(group.reason, group.count) for group in groups] == [("permanent", 2), ("max_retries", 1)]
    chosen = DeadLetterFilter(fingerprint=groups[0].fingerprint, account="default")
    assert [chosen.matches(letter) for letter in dead_letters.letters()] == [True, True, False]


def test_a_replayed_dead_letter_is_new_mail_once(
    dead_letters: DeadLetterQueue, dead: list[str], consumer: Consumer, redis_link: RedisLink
):
    ids = [letter.id for letter in dead_letters.letters()]
    assert sum(dead_letters.replay(ids)) == 3
    assert sum(dead_letters.replay(ids)) == 0
    read = consumer.read_new(10, block=False)
    assert [(delivery.email_id, delivery.attempt) for delivery in read] == [(email_id, 1) for email_id in dead]
    assert consumer.dead_letter(read[0], dead_letter_fields("permanent", 1, None, "", "here"))
    (letter,) = dead_letters.letters()
    assert (letter.replays, letter.replay_of) == (1, parse_entry_id(ids[0])[1])


def test_a_removed_dead_letter_is_gone(dead_letters: DeadLetterQueue, dead: list[str]):
    ids = [letter.id for letter in dead_letters.letters()]
    assert [gone for chunk in dead_letters.remove([ids[0], ids[0], "1-0"]) for gone in chunk] == [ids[0]]
    assert dead_letters.depth() == 2


def test_a_message_for_a_single_sink_is_replayed_for_it_alone(dead_letters: DeadLetterQueue, consumer: Consumer):
    only = message(5)
    dead_letters.add(only, dead_letter_fields("permanent", 1, None, "", "here"))
    (letter,) = dead_letters.letters()
    assert sum(dead_letters.replay([letter.id])) == 1
    assert [delivery.message for delivery in consumer.read_new(10, block=False)] == [only]


def test_a_dead_letter_of_another_program_is_shown_with_what_it_has():
    letter = parse_dead_letter("1767225600000-0", {b"written_by": b"another", b"gm_msgid": b"many", b"\xff": b"\xff"})
    assert (letter.email_id, letter.reason, letter.account, letter.uid) == (
        "entry:1767225600000-0",
        UNKNOWN,
        UNKNOWN,
        None,
    )
    assert letter.dead_at == "2026-01-01T00:00:00.000+00:00"


def test_an_operator_dead_letters_a_pending_entry_or_makes_it_due(
    redis_link: RedisLink, consumer: Consumer, other: Consumer, append: Callable
):
    append(1, 2)
    consumer.read_new(10, block=False)
    pending = PendingEntries(redis_link)
    first, second = pending.entries(consumer="here-worker-1")
    assert (first.consumer, first.deliveries, first.email_id) == ("here-worker-1", 1, "default:gm:1001")
    assert pending.dead_letter(first, "here-ada")
    assert pending.dead_letter(first, "here-ada") is None
    assert pending.release([first, second]) == 1
    (claimed,) = other.claim_due(10)
    assert (claimed.id, claimed.attempt, claimed.foreign) == (second.id, 2, True)


def test_a_consumer_is_pruned_only_when_it_is_gone_and_has_nothing(
    redis_link: RedisLink, consumer: Consumer, append: Callable
):
    append(1)
    read = consumer.read_new(10, block=False)
    pending = PendingEntries(redis_link)
    assert [(found.name, found.pending, found.alive) for found in pending.consumers()] == [("here-worker-1", 1, False)]
    assert not pending.prune("here-worker-1")
    consumer.ack(read)
    assert pending.prune("here-worker-1")
    assert not pending.prune("here-worker-1")


def test_the_queue_goes_out_and_comes_back_without_what_is_there_already(
    redis_link: RedisLink, consumer: Consumer, append: Callable
):
    append(1, 2, 3)
    dump = QueueDump(redis_link)
    entries = list(dump.entries())
    assert sum(dump.remove((entry_id, entry_bytes(fields)) for entry_id, fields in entries[:2])) == 2
    assert dump.depth() == 1
    assert list(dump.refill(entries)) == [(3, 2)]
    assert list(dump.refill(entries)) == [(3, 0)]
    assert sorted(delivery.email_id for delivery in consumer.read_new(10, block=False)) == [
        "default:gm:1001",
        "default:gm:1002",
        "default:gm:1003",
    ]
