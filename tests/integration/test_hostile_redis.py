"""Whoever can write to Redis may write anything into any key: nothing ends over it, and mail goes on."""

from __future__ import annotations

import math

import pytest

from email_ingestion.app.consumer_proof import ConsumerProofs
from email_ingestion.errors import ConfigurationError
from email_ingestion.records import Cursor
from email_ingestion.stream import Appender, Consumer, RedisLink, read_gauges
from email_ingestion.stream.account_limits import DownloadQuota, Lockout, Miscounts
from email_ingestion.stream.quarantine import Quarantine, Suspects, quarantined_mailboxes
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
    for name in (keys.volume, keys.replayed, keys.ledger, keys.ledger_losses, keys.alive("worker-9")):
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
    taken = consumer.read_new(10, block=False)
    assert len(taken) == 2
    consumer.ack(taken)
    assert client.xlen(keys.stream) == 0
    assert appender.cursor("default", "INBOX") == Cursor(7, 2)


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
