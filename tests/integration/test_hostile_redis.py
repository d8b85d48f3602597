"""Whoever can write to Redis may write anything into any key: nothing ends over it, and mail goes on."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from email_ingestion.app.consumer_proof import ConsumerProofs
from email_ingestion.errors import ConfigurationError, RedisConnectionError
from email_ingestion.records import Cursor
from email_ingestion.stream import Appender, Consumer, DeadLetterQueue, Keys, RedisLink, announce_presence, read_gauges
from email_ingestion.stream.account_limits import DownloadQuota, Lockout, Miscounts
from email_ingestion.stream.codec import Delivery
from email_ingestion.stream.dead_letters import dead_letter_fields
from email_ingestion.stream.entry_scan import BEGINNING
from email_ingestion.stream.foreign_keys import ForeignKey, set_aside
from email_ingestion.stream.leases import Leases
from email_ingestion.stream.quarantine import Quarantine, Suspects, quarantined_mailboxes
from email_ingestion.stream.queue_watch import QueueWatch
from email_ingestion.stream.scrub_record import ScrubRecord
from email_ingestion.stream.shared_overrides import SharedOverrides
from email_ingestion.stream.stored_values import LARGEST, number, record, whole_number
from email_ingestion.stream.synthetic import SyntheticMessages
from tests.servers.links import link, message
from tests.servers.redis import RedisServer

HOSTILE = [
    *(b"", b"x" * 200_000, b"\xff\xfe\0", b"[" * 50_000, b'{"a":' * 50_000, b"1e999", b"-1", b"9" * 23, b"9" * 5000),
    *(b"null", b"[]", b"{}", b"nan", b"inf", b"0x10", b"1.5", b" 7", b"7\n", b"\xd9\xa7", b"\x1b[2J", b"true"),
    b'{"component": 1, "instance": [], "at": 1e999, "missing": "x", "ends_ms": NaN, "tries": null, "due": 1e999}',
    b'{"component": "worker", "instance": "a", "seen": [], "sink_calls": [1, {}], "sinks_oldest": {"a": "b"}}',
    b'{"at": -1, "missing": 1, "altered": true, "ends_ms": 1e300, "value": "x", "by": "y"}',
    b'{"tries": 2, "due": 3, "since": "x", "accepted": 5, "ends_ms": 1, "value": 5, "by": {}}',
]


@pytest.fixture
def there(redis_server: RedisServer) -> RedisLink:
    return link(redis_server.url)


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value[:12]))
def test_what_others_wrote_into_our_keys_ends_nothing(there: RedisLink, value: bytes) -> None:
    keys, client = there.keys, there.client
    for name in (
        keys.volume,
        keys.replayed,
        keys.ledger,
        keys.ledger_losses,
        keys.queue_losses,
        keys.alive("worker-9"),
    ):
        client.set(name, value)
    client.rpush(keys.receipts("run"), value)
    field = value[:100] or b"x"
    for name in (
        keys.processes,
        keys.proofs,
        keys.control,
        keys.budget("default"),
        keys.quarantine("default", "INBOX"),
    ):
        client.hset(name, mapping={field: value, b"7/5": value, b"7/5/body": value})
    client.hset(keys.suspects("default", "INBOX"), mapping={field: value, b"7/5/body": value})
    client.hset(keys.lockout("default"), mapping={"until": value, "seconds": value})
    client.hset(keys.miscounts("default"), mapping={"until": value})
    client.hset(keys.scrub, mapping={"position": value, "lost": value, "ended": value})
    cursor = {"uidvalidity": value, "uid": value, "rescan": value, "history": value, "modseq": value}
    client.hset(keys.cursor("default", "INBOX"), mapping=cursor)

    appender = Appender(there)
    appender.cursor("default", "INBOX")
    appender.modseq("default", "INBOX")
    assert appender.backlog().volume >= 0
    assert appender.restart_cursor("default", "INBOX", Cursor(7, 0)) == Cursor(7, 0)
    assert DownloadQuota(there, "default").reserve(10, 1000).granted
    assert list(quarantined_mailboxes(there, "default"))
    (again,) = Quarantine(there, "default", "INBOX", 7).messages()
    assert again.uid == 5
    assert Quarantine(there, "default", "INBOX", 7).due() or again.due > 0
    Suspects(there, "default", "INBOX", 7).deaths()
    assert 0 <= Lockout(there, "default").remaining() < math.inf
    assert 0 < Lockout(there, "default").start(5.0) <= 86_400
    assert not Miscounts(there, "default").expected()
    ScrubRecord(there).read()
    assert all(override.seconds < math.inf for override in SharedOverrides(there).read().values())
    ConsumerProofs(there).read()
    SyntheticMessages(there).pop_receipts("run")
    gauges = read_gauges(there)
    assert all(isinstance(each["instance"], str) for each in gauges.processes)

    appender.append("default", "INBOX", Cursor(7, 0), 2, [message(1), message(2)])
    consumer = Consumer(there, "here-worker-1", 60.0)
    consumer.ensure_group()
    watch = QueueWatch(there, lambda _: None)
    watch.lost_mail()
    client.delete(keys.stream)
    assert watch.lost_mail()
    consumer.read_new(10, block=False)
    appender.append_missing([message(1), message(2)], BEGINNING)
    taken = consumer.read_new(10, block=False)
    assert len(taken) == 2
    consumer.ack(taken)
    assert client.xlen(keys.stream) == 0
    assert appender.cursor("default", "INBOX") == Cursor(7, 2)


WRONG = {
    "string": lambda client, key: client.set(key, "theirs"),
    "list": lambda client, key: client.rpush(key, "theirs"),
    "set": lambda client, key: client.sadd(key, "theirs"),
    "zset": lambda client, key: client.zadd(key, {"theirs": 1}),
    "hash": lambda client, key: client.hset(key, "theirs", "1"),
    "stream": lambda client, key: client.xadd(key, {"theirs": "1"}),
}


def _key_types(keys: Keys) -> dict[str, str]:
    """Return every key that the processes have, and its type."""
    streams = dict.fromkeys((keys.stream, keys.dlq), "stream")
    strings = (
        keys.volume,
        keys.replayed,
        keys.ledger,
        keys.ledger_losses,
        keys.queue_losses,
        keys.lease("default"),
        keys.proving("files"),
    )
    hashes = (keys.processes, keys.control, keys.scrub, keys.proofs, keys.cursor("default", "INBOX"))
    accounts = (keys.budget("default"), keys.lockout("default"), keys.miscounts("default"))
    mailboxes = (keys.quarantine("default", "INBOX"), keys.suspects("default", "INBOX"))
    return {
        **streams,
        **dict.fromkeys((*strings, keys.alive("worker-9")), "string"),
        **dict.fromkeys((*hashes, *accounts, *mailboxes), "hash"),
        keys.priority: "zset",
        keys.receipts("run"): "list",
    }


def _use_everything(there: RedisLink) -> None:
    """Do what producers and workers do with each key."""
    announce_presence(there, {"component": "worker", "instance": "worker-9"})
    QueueWatch(there, lambda _: None).lost_mail()
    there.call(lambda: there.client.incr(there.keys.ledger_losses))
    leases = Leases(there, "here-producer", "1")
    assert leases.renew(["default"]) == {}
    assert DownloadQuota(there, "default").reserve(10, 1000).granted
    assert Lockout(there, "default").start(5.0) > 0
    Lockout(there, "default").remaining()
    Miscounts(there, "default").expected()
    Quarantine(there, "default", "INBOX", 7).messages()
    Suspects(there, "default", "INBOX", 7).deaths()
    ScrubRecord(there).read()
    SharedOverrides(there).read()
    ConsumerProofs(there).read()
    SyntheticMessages(there).pop_receipts("run")
    appender = Appender(there)
    since = appender.cursor("default", "INBOX") or appender.restart_cursor("default", "INBOX", Cursor(7, 0))
    assert appender.append("default", "INBOX", since, 2, [message(1), replace(message(2), priority=9)])
    consumer = Consumer(there, "here-worker-1", 60.0)
    consumer.ensure_group()
    taken: dict[int, Delivery] = {}
    while len(taken) < 2:  # urgent mail comes in a read of its own
        found = consumer.read_new(10, block=False)
        assert found
        taken |= {each.message.envelope.uid: each for each in found if each.message}
    assert consumer.dead_letter(taken[1], dead_letter_fields("operator", 1, None, "", "here-worker-1"))
    consumer.ack([taken[2]])
    assert list(DeadLetterQueue(there).replay([each.id for each in DeadLetterQueue(there).letters()]))
    assert read_gauges(there).depth == 1


def test_a_key_of_another_type_is_moved_aside_once_and_mail_flows(there: RedisLink) -> None:
    client, keys = there.client, there.keys
    moved: list[ForeignKey] = []
    there.on_set_aside = moved.append
    for key, belongs in _key_types(keys).items():
        for kind, write in WRONG.items():
            if kind == belongs:
                continue
            client.flushall()
            moved.clear()
            there._looked_for_foreign = -math.inf
            write(client, key)
            _use_everything(there)
            aside = keys.name("foreign:" + key.removeprefix(keys.name("")))
            for each in moved:
                assert (each.key, each.kind, each.belongs) == (key, kind, belongs)
            assert len(moved) <= 1
            if moved:
                assert client.type(aside) == kind.encode()
            else:  # written anew, or not needed here
                assert client.type(key) in {belongs.encode(), kind.encode()}
                assert key in {keys.volume, keys.replayed, keys.ledger, keys.alive("worker-9"), keys.proving("files")}


def test_all_keys_of_another_type_at_once_stop_nothing(there: RedisLink) -> None:
    moved: list[ForeignKey] = []
    there.on_set_aside = moved.append
    for key, belongs in _key_types(there.keys).items():
        WRONG["set" if belongs != "set" else "list"](there.client, key)
    _use_everything(there)
    assert {each.belongs for each in moved} == {"stream", "string", "hash", "zset", "list"}
    assert not there.foreign_keys()


def test_a_command_names_the_key_and_changes_nothing(redis_server: RedisServer) -> None:
    reading = link(redis_server.url)
    for key, belongs in (
        (reading.keys.stream, "stream"),
        (reading.keys.dlq, "stream"),
        (reading.keys.volume, "string"),
    ):
        reading.client.flushall()
        reading.client.sadd(key, "theirs")
        with pytest.raises(RedisConnectionError, match="somebody else wrote that") as refused:
            read_gauges(reading)
        assert f"{key} is a set where a {belongs} belongs" in str(refused.value)
        assert reading.client.smembers(key) == {b"theirs"}
        assert [each.key for each in reading.foreign_keys()] == [key]


def test_a_key_that_was_mended_meanwhile_is_left_alone(there: RedisLink) -> None:
    there.client.set(there.keys.control, "theirs")
    (found,) = there.foreign_keys()
    there.client.delete(there.keys.control)
    there.client.hset(there.keys.control, "ours", "1")
    assert not set_aside(there.script("set_aside"), found)
    assert there.client.hgetall(there.keys.control) == {b"ours": b"1"}


def test_a_damaged_number_of_partitions_is_said_and_not_guessed(redis_server: RedisServer) -> None:
    first = link(redis_server.url)
    first.client.set(first.keys.partitions, "two")
    with pytest.raises(ConfigurationError, match="is no number"):
        read_gauges(link(redis_server.url))


def test_numbers_and_records_are_what_they_say_or_missing() -> None:
    assert [whole_number(each) for each in (b"7", "7", -7, b"0", None, str(LARGEST))] == [7, 7, -7, 0, None, LARGEST]
    assert [whole_number(each) for each in (str(LARGEST + 1), b"7 ", b"+7", b"1_0", b"")] == [None] * 5
    assert [number(each) for each in (b"1.25", 3, None, b"1e3", b"inf", b"-0.5")] == [1.25, 3.0, None, None, None, -0.5]
    assert record(b'{"a": 1, "b": "x"}', {"a": int}) == {"a": 1, "b": "x"}
    assert record(b'{"a": "1"}', {"a": int}) is None
    assert record(b'{"b": 1}', {"a": int}) is None
