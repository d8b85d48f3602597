"""Mail spread over partitions, of one server and of a Cluster: no account is in two places, no partition overlooked."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from email_ingestion.errors import ConfigurationError, PermanentError, StaleCursor
from email_ingestion.records import Cursor
from email_ingestion.settings import RedisAddress
from email_ingestion.stream import (
    Appender,
    Consumer,
    DeadLetterQueue,
    Leases,
    RedisLink,
    SnapshotRestore,
    Tally,
    open_link,
    read_gauges,
    read_snapshot,
)
from email_ingestion.stream.dead_letter_file import read_entries, verify_file, write_entries
from email_ingestion.stream.dead_letters import dead_letter_fields, group_failures
from email_ingestion.stream.entry_scan import BEGINNING
from email_ingestion.stream.keys import TAG, partition_keys, partition_of
from email_ingestion.stream.pending import PendingEntries
from email_ingestion.stream.queue_dump import QueueDump, entry_bytes
from tests.servers.links import link, message
from tests.servers.redis import RedisServer
from tests.servers.redis_fleet import ClusterFleet, running

PARTITIONS = 4
LEASE = 60.0


def accounts() -> list[str]:
    """One for each partition."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < PARTITIONS:
        found.setdefault(partition_of(f"a{number}", PARTITIONS), f"a{number}")
        number += 1
    return [found[partition] for partition in range(PARTITIONS)]


ACCOUNTS = accounts()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterFleet]:
    """Three masters that share the slots evenly."""
    with running(ClusterFleet(tmp_path_factory.mktemp("cluster"), 15.0, replicas=False)) as fleet:
        yield fleet


@pytest.fixture(params=["one server", "cluster"])
def address(request: pytest.FixtureRequest) -> RedisAddress:
    """An empty Redis of either kind."""
    if request.param == "one server":
        return RedisAddress(request.getfixturevalue("redis_server").url, partitions=PARTITIONS)
    fleet = request.getfixturevalue("cluster")
    for server in fleet.servers:
        with server.client() as client:
            client.flushall()
    return fleet.address(PARTITIONS)


@pytest.fixture
def spread(address: RedisAddress) -> Iterator[RedisLink]:
    made = link(address)
    yield made
    made.client.close()


def put(link: RedisLink, *uids: int, of: tuple[str, ...] = tuple(ACCOUNTS), holder: str = "") -> None:
    """Append these messages to the mail of each account."""
    intake = Appender(link, holder)
    for account in of:
        since = intake.restart_cursor(account, "INBOX", Cursor(1, 0))
        intake.append(account, "INBOX", since, uids[-1], [message(uid, account=account) for uid in uids])


def taken(queue: Consumer, limit: int = 100) -> list:
    found = []
    while batch := queue.read_new(limit, block=False):
        found += batch
    return found


def bury_all(queue: Consumer) -> None:
    for each in taken(queue):
        assert queue.dead_letter(each, dead_letter_fields("permanent", each.attempt, PermanentError("no"), "", "here"))


@pytest.mark.parametrize("partitions", [2, 3, 4, 6, 12, 16, 64])
@pytest.mark.parametrize("masters", [2, 3, 6])
def test_masters_that_share_the_slots_evenly_get_as_many_partitions_each(partitions: int, masters: int):
    from redis.crc import key_slot  # noqa: PLC0415 - as the server computes it

    tags = [keys.tag for keys in partition_keys(partitions)]
    assert tags[0] == TAG
    assert len(set(tags)) == partitions
    shares = Counter(key_slot(tag.encode()) * masters // 16384 for tag in tags)
    assert max(shares.values()) - min(shares[master] for master in range(masters)) <= 1


def test_the_number_of_a_tag_names_its_partition():
    for keys in partition_keys(12)[1:]:
        assert int(keys.tag.rpartition(":")[2]) % 12 == keys.partition


def test_one_partition_has_the_keys_it_always_had(redis_server: RedisServer):
    put(link(redis_server.url), 1)
    with redis_server.client() as client:
        assert sorted(client.keys()) == [
            *(f"{{email_ingestion}}:cursor:{account}/INBOX".encode() for account in sorted(ACCOUNTS)),
            b"{email_ingestion}:stream",
            b"{email_ingestion}:volume",
        ]


def test_the_mail_of_an_account_lies_beside_its_cursor(spread: RedisLink):
    put(spread, 1, 2)
    for account, keys in zip(ACCOUNTS, spread.partitions, strict=True):
        assert spread.client.xlen(keys.stream) == 2
        assert spread.client.exists(keys.cursor(account, "INBOX"))
    assert Appender(spread).backlog().depth == 2 * PARTITIONS


def test_another_number_of_partitions_is_refused_with_what_to_set(address: RedisAddress, spread: RedisLink):
    put(spread, 1)
    for other in (1, 2):
        with pytest.raises(ConfigurationError, match="set REDIS_PARTITIONS=4"):
            Appender(link(replace(address, partitions=other))).backlog()


def test_mail_of_one_partition_is_not_spread_later(redis_server: RedisServer):
    put(link(redis_server.url), 1)
    with pytest.raises(ConfigurationError, match="set REDIS_PARTITIONS=1"):
        Appender(link(RedisAddress(redis_server.url, partitions=PARTITIONS))).backlog()


def test_a_resent_append_adds_nothing_in_any_partition(spread: RedisLink):
    put(spread, 1, 2)
    intake = Appender(spread)
    for account in ACCOUNTS:
        assert intake.append(account, "INBOX", Cursor(1, 0), 2, [message(1), message(2)]) == (0, Cursor(1, 2))


def test_a_worker_takes_from_every_partition_in_turn(spread: RedisLink):
    put(spread, *range(1, 7))
    queue = Consumer(spread, "here-worker-1", LEASE)
    batches = [queue.read_new(2, block=False) for _ in range(PARTITIONS)]
    assert {batch[0].message.envelope.account for batch in batches} == set(ACCOUNTS)
    assert all(len({each.message.envelope.account for each in batch}) == 1 for batch in batches)


def test_everything_is_taken_once_and_completed_where_it_lies(spread: RedisLink):
    put(spread, 1, 2, 3)
    queue = Consumer(spread, "here-worker-1", LEASE)
    found = taken(queue)
    assert len({each.email_id for each in found}) == len(found) == 3 * PARTITIONS
    assert queue.ack(found) == []
    assert queue.depth() == Appender(spread).backlog().volume == 0


def test_entries_with_one_id_in_two_partitions_are_two(spread: RedisLink):
    """Each stream numbers its entries by itself."""
    put(spread, 1)
    queue = Consumer(spread, "here-worker-1", LEASE)
    for keys in spread.partitions:
        spread.client.delete(keys.stream)
        entry = {"account": ACCOUNTS[keys.partition], "sha256": "0", "v": "1"}
        spread.client.xadd(keys.stream, entry, id="5-1")
    queue.ensure_group()
    found = taken(queue)
    assert len({each.id for each in found}) == PARTITIONS
    assert queue.ack(found[:1]) == []
    assert queue.extend([each.id for each in found]) == {each.id for each in found[1:]}
    assert queue.release([each.id for each in found]) == PARTITIONS - 1


def test_what_another_worker_abandoned_is_found_in_every_partition(spread: RedisLink):
    put(spread, 1)
    lost = taken(Consumer(spread, "gone", LEASE))
    heir = Consumer(spread, "here-worker-1", 0.0)
    for keys in spread.partitions:  # as if they had been idle for long
        for entry in spread.client.xpending_range(keys.stream, "email_processor_group", "-", "+", 10):
            spread.client.xclaim(
                keys.stream, "email_processor_group", "gone", 0, [entry["message_id"]], idle=10**8, retrycount=1
            )
    rescued = [each for _ in range(PARTITIONS) for each in heir.claim_due(10)]
    assert {each.email_id for each in rescued} == {each.email_id for each in lost}
    assert all(each.foreign for each in rescued)


def test_an_idle_worker_wakes_for_mail_in_any_partition(spread: RedisLink):
    for account in ACCOUNTS:
        queue = Consumer(spread, "here-worker-1", LEASE)
        assert taken(queue) == []
        appended = threading.Timer(0.1, put, (link_like(spread), 1), {"of": (account,)})
        appended.start()
        found = []
        while not found:  # a wait ends after a second at the latest; a late timer only means another one
            found = queue.read_new(10)
        appended.join()
        assert [each.message.envelope.account for each in found] == [account]


def link_like(spread: RedisLink) -> RedisLink:
    """Another link to the same Redis."""
    made = RedisLink(spread.client, spread.keys, spread.breaker, PARTITIONS)
    made.call(lambda: None)
    return made


def test_a_gap_is_filled_once_and_by_the_holder_of_the_lease_alone(spread: RedisLink):
    leases = Leases(spread, "seat", "term")
    assert leases.renew(ACCOUNTS) == {}
    assert Leases(spread, "other", "term").renew(ACCOUNTS) == dict.fromkeys(ACCOUNTS, leases.owner)
    for account in ACCOUNTS:
        appender = Appender(spread, leases.owner)
        assert [appender.append_missing([message(7, account=account)], BEGINNING) for _ in range(2)] == [1, 0]
    leases.release(ACCOUNTS)
    assert Leases(spread, "other", "term").renew(ACCOUNTS) == {}


def test_a_lost_partition_asks_for_its_own_accounts_alone(spread: RedisLink):
    put(spread, 1)
    lost_keys = spread.partitions[2]
    spread.client.delete(lost_keys.stream, lost_keys.cursor(ACCOUNTS[2], "INBOX"))
    intake = Appender(spread)
    for account in ACCOUNTS:
        lost = account == ACCOUNTS[2]
        assert (intake.cursor(account, "INBOX") is None) == lost
        if lost:
            with pytest.raises(StaleCursor):
                intake.append(account, "INBOX", Cursor(1, 1), 2, [message(2, account=account)])


def test_the_gauges_are_of_all_partitions(spread: RedisLink):
    put(spread, 1, 2)
    queue = Consumer(spread, "here-worker-1", LEASE)
    (first, *_) = queue.read_new(1, block=False)
    queue.dead_letter(first, dead_letter_fields("permanent", 1, None, "", "here"))
    held = queue.read_new(1, block=False)
    gauges = read_gauges(spread)
    assert (gauges.depth, gauges.pending, gauges.dlq_depth) == (2 * PARTITIONS - 1, len(held), 1)
    assert gauges.oldest is not None
    assert gauges.oldest_pending is not None
    assert gauges.volume == Appender(spread).backlog().volume > 0


def test_dead_letters_are_found_replayed_and_removed_wherever_they_lie(spread: RedisLink):
    put(spread, 1, 2)
    queue = Consumer(spread, "here-worker-1", LEASE)
    bury_all(queue)
    dead_letters = DeadLetterQueue(spread)
    letters = list(dead_letters.letters())
    assert dead_letters.depth() == len(letters) == 2 * PARTITIONS
    assert group_failures(letters)[0].count == 2 * PARTITIONS
    assert [each.id for each in dead_letters.find([each.id for each in letters])] == [each.id for each in letters]
    half = [each.id for each in letters if each.uid == 1]
    assert [sum(dead_letters.replay(half)) for _ in range(2)] == [PARTITIONS, 0]
    assert {each.message.envelope.account for each in taken(queue)} == set(ACCOUNTS)
    rest = [each.id for each in letters if each.uid == 2]
    assert sorted(each for gone in dead_letters.remove([*rest, "63:1-1"]) for each in gone) == sorted(rest)
    assert dead_letters.depth() == 0


def test_a_letter_of_one_sink_lies_beside_the_account(spread: RedisLink):
    for account in ACCOUNTS:
        DeadLetterQueue(spread).add(message(1, account=account), dead_letter_fields("permanent", 1, None, "", "here"))
    assert [spread.client.xlen(keys.dlq) for keys in spread.partitions] == [1] * PARTITIONS


def test_what_is_stuck_is_set_free_or_buried_by_its_id(spread: RedisLink):
    put(spread, 1, 2)
    gone = Consumer(spread, "gone", LEASE)
    taken(gone)
    pending_entries = PendingEntries(spread)
    assert [(each.name, each.pending) for each in pending_entries.consumers()] == [("gone", 2 * PARTITIONS)]
    entries = list(pending_entries.entries(consumer="gone"))
    assert len({each.id for each in entries}) == 2 * PARTITIONS
    assert not pending_entries.prune("gone")
    freed, doomed = entries[::2], entries[1::2]
    assert pending_entries.release(freed) == len(freed)
    letters = [pending_entries.dead_letter(each, "here") for each in doomed]
    assert {each.id for each in DeadLetterQueue(spread).find(filter(None, letters))} == set(letters)
    heir = Consumer(spread, "here-worker-1", LEASE)
    rescued = []
    while found := heir.claim_due(10):
        rescued += found
    assert {each.email_id for each in rescued} == {each.email_id for each in freed}
    assert pending_entries.prune("gone")
    assert [each.name for each in pending_entries.consumers()] == ["here-worker-1"]


def test_the_queue_goes_into_a_file_and_back_to_where_it_was(spread: RedisLink, tmp_path: Path):
    put(spread, 1, 2, 3)
    dump, file = QueueDump(spread), tmp_path / "queue.jsonl"
    write_entries(file, dump.entries(), {}, lambda: None, form="queue")
    assert len(verify_file(file, form="queue").letters) == 3 * PARTITIONS
    sizes = ((entry_id, entry_bytes(fields)) for entry_id, fields in read_entries(file))
    assert sum(dump.remove(sizes)) == 3 * PARTITIONS
    assert Appender(spread).backlog().depth == Appender(spread).backlog().volume == 0
    for added in (3 * PARTITIONS, 0):
        assert sum(new for _, new in dump.refill(read_entries(file))) == added
    assert [spread.client.xlen(keys.stream) for keys in spread.partitions] == [3] * PARTITIONS


def test_a_backup_holds_every_partition_and_comes_back_as_it_was(spread: RedisLink, own_redis: RedisServer):
    put(spread, 1, 2)
    queue = Consumer(spread, "here-worker-1", LEASE)
    held = queue.read_new(1, block=False)
    queue.dead_letter(queue.read_new(1, block=False)[0], dead_letter_fields("permanent", 1, None, "", "here"))
    before = Tally()
    lines = [before.count(line) for line in read_snapshot(spread)]
    assert before.summary()["stream_length"] == 2 * PARTITIONS - 1
    assert before.summary()["pending"] == len(held)
    there = open_link(RedisAddress(own_redis.url, partitions=PARTITIONS), "test")
    restore = SnapshotRestore(there)
    assert restore.existing_keys() == []
    restore.load(lines)
    restore.verify(before.summary())
    restore.switch()
    after = Tally()
    for line in read_snapshot(there):
        after.count(line)
    assert after.summary() == before.summary()
    assert Consumer(there, "here-worker-1", LEASE).ack(held) == []
