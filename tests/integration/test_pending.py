"""Setting free what is stuck, and the queue into a file and back: nothing pending is ever dropped."""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path

import pytest

from email_ingestion.cli.stuck_work import list_consumers, list_pending
from email_ingestion.errors import OperationFailed, RedisConnectionError
from email_ingestion.records import Cursor
from email_ingestion.stream import GROUP, Appender, Consumer, Keys, RedisLink, announce_presence
from email_ingestion.stream.dead_letter_file import read_entries, verify_file, write_entries
from email_ingestion.stream.pending import PendingEntries
from email_ingestion.stream.queue_dump import QueueDump, entry_bytes
from tests.servers.links import link, message
from tests.servers.redis import RedisServer

KEYS = Keys()
FORM = "email-ingestion queue"


@pytest.fixture
def redis_link(redis_server: RedisServer) -> RedisLink:
    return link(redis_server.url)


def fill(redis_link: RedisLink, uids: range) -> None:
    appender = Appender(redis_link)
    since = appender.restart_cursor("default", "INBOX", Cursor(1, uids.start - 1))
    appender.append("default", "INBOX", since, uids.stop - 1, [message(uid) for uid in uids])


def drained(redis_link: RedisLink, path: Path) -> int:
    dump = QueueDump(redis_link)
    write_entries(path, dump.entries(), {}, lambda: None, form=FORM)
    verify_file(path, form=FORM)
    return sum(dump.remove((entry_id, entry_bytes(fields)) for entry_id, fields in read_entries(path)))


def refilled(redis_link: RedisLink, path: Path) -> int:
    return sum(added for _, added in QueueDump(redis_link).refill(read_entries(path)))


def volume(redis_link: RedisLink) -> int:
    return int(redis_link.client.get(KEYS.volume) or 0)


def test_what_is_none_is_said_to_be_none(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    for command, said in ((list_consumers, "no worker has taken"), (list_pending, "nothing like that is pending")):
        assert command() == 1
        assert said in capsys.readouterr().err


def test_pending_entries_are_listed_with_who_has_them(redis_link: RedisLink):
    fill(redis_link, range(1, 4))
    Consumer(redis_link, "one", 60).read_new(2, block=False)
    found = list(PendingEntries(redis_link).entries())
    assert [(each.email_id, each.consumer, each.deliveries) for each in found] == [
        ("default:gm:1001", "one", 1),
        ("default:gm:1002", "one", 1),
    ]
    assert all(each.wire_bytes > 100 for each in found)
    assert all(0 <= each.age_seconds < 60 for each in found)
    assert list(PendingEntries(redis_link).entries(consumer="two")) == []
    assert list(PendingEntries(redis_link).entries(idle_seconds=60)) == []


def test_an_entry_that_was_let_go_is_due_for_anybody_and_keeps_its_count(redis_link: RedisLink):
    fill(redis_link, range(1, 2))
    Consumer(redis_link, "one", 60).read_new(1, block=False)
    two = Consumer(redis_link, "two", 60)
    assert two.claim_due(10) == []
    pending_entries = PendingEntries(redis_link)
    (pending_entry,) = pending_entries.entries()
    assert pending_entries.release([pending_entry]) == 1
    (taken,) = two.claim_due(10)
    assert (taken.attempt, taken.foreign) == (2, True)
    assert pending_entries.release([pending_entry]) == 0


def test_a_buried_entry_is_a_dead_letter_of_the_operator(redis_link: RedisLink):
    fill(redis_link, range(1, 2))
    Consumer(redis_link, "one", 60).read_new(1, block=False)
    pending_entries = PendingEntries(redis_link)
    (pending_entry,) = pending_entries.entries()
    letter = pending_entries.dead_letter(pending_entry, "here-ada")
    ((found, fields),) = redis_link.client.xrange(KEYS.dlq)
    assert (found.decode(), fields[b"dead_reason"], fields[b"dead_instance"]) == (letter, b"operator", b"here-ada")
    assert (redis_link.client.xlen(KEYS.stream), volume(redis_link)) == (0, 0)
    assert pending_entries.dead_letter(pending_entry, "here-ada") is None


def test_only_a_consumer_that_is_gone_and_holds_nothing_is_pruned(redis_link: RedisLink):
    fill(redis_link, range(1, 3))
    holding, done = (Consumer(redis_link, name, 60) for name in ("holding", "done"))
    holding.read_new(1, block=False)
    done.ack(done.read_new(1, block=False))
    redis_link.client.xgroup_createconsumer(KEYS.stream, GROUP, "living")
    announce_presence(redis_link, {"component": "worker", "instance": "living"})
    pending_entries = PendingEntries(redis_link)
    assert [(each.name, each.pending, each.alive) for each in pending_entries.consumers()] == [
        ("done", 0, False),
        ("holding", 1, False),
        ("living", 0, True),
    ]
    assert [pending_entries.prune(name) for name in ("done", "holding", "living", "nobody")] == [
        True,
        False,
        False,
        False,
    ]
    assert [each.email_id for each in pending_entries.entries()] == ["default:gm:1001"]


def test_nothing_is_stuck_where_there_is_no_stream(redis_link: RedisLink):
    pending_entries = PendingEntries(redis_link)
    assert (list(pending_entries.entries()), pending_entries.consumers(), pending_entries.prune("one")) == (
        [],
        [],
        False,
    )


def test_the_queue_comes_back_from_its_file_as_it_was(redis_link: RedisLink, tmp_path: Path):
    fill(redis_link, range(1, 301))
    Consumer(redis_link, "one", 60).read_new(5, block=False)
    before, bytes_before = [fields for _, fields in redis_link.client.xrange(KEYS.stream)], volume(redis_link)
    path = tmp_path / "queue.jsonl"
    assert drained(redis_link, path) == 300
    assert (redis_link.client.xlen(KEYS.stream), volume(redis_link)) == (0, 0)
    assert list(PendingEntries(redis_link).entries()) == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    lines = path.read_bytes().splitlines(keepends=True)
    assert json.loads(lines[-1]) == {"count": 300, "sha256": hashlib.sha256(b"".join(lines[:-1])).hexdigest()}
    assert refilled(redis_link, path) == 300
    assert [fields for _, fields in redis_link.client.xrange(KEYS.stream)] == before
    assert volume(redis_link) == bytes_before


def test_a_refill_adds_nothing_that_is_queued_or_dead(redis_link: RedisLink, tmp_path: Path):
    fill(redis_link, range(1, 11))
    path = tmp_path / "queue.jsonl"
    drained(redis_link, path)
    assert refilled(redis_link, path) == 10
    one = Consumer(redis_link, "one", 60)
    one.dead_letter(one.read_new(1, block=False)[0], {"dead_reason": "permanent"})
    assert refilled(redis_link, path) == 0
    assert redis_link.client.xlen(KEYS.stream) == 9


def test_a_worker_whose_entry_was_drained_is_told_and_loses_nothing(redis_link: RedisLink, tmp_path: Path):
    fill(redis_link, range(1, 2))
    one = Consumer(redis_link, "one", 60)
    taken = one.read_new(1, block=False)
    path = tmp_path / "queue.jsonl"
    drained(redis_link, path)
    assert one.ack(taken) == taken
    assert refilled(redis_link, path) == 1


def test_what_arrives_while_the_file_is_written_stays(redis_link: RedisLink, tmp_path: Path):
    fill(redis_link, range(1, 4))
    path = tmp_path / "queue.jsonl"
    entries = QueueDump(redis_link).entries()
    first = next(entries)
    Appender(redis_link).append("default", "INBOX", Cursor(1, 3), 4, [message(4)])
    write_entries(path, [first, *entries], {}, lambda: None, form=FORM)
    assert len(verify_file(path, form=FORM).letters) == 3


@pytest.mark.parametrize("damage", ["truncated", "cut at a line", "changed", "dead letters", "empty", "gone"])
def test_a_file_that_is_not_whole_is_refused(redis_link: RedisLink, tmp_path: Path, damage: str):
    fill(redis_link, range(1, 4))
    path = tmp_path / "queue.jsonl"
    write_entries(path, QueueDump(redis_link).entries(), {}, lambda: None, form=FORM)
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    path.write_bytes(
        {
            "truncated": content[:-40],
            "cut at a line": b"".join(lines[:-1]),
            "changed": content.replace(b"INBOX", b"OUTBX", 1),
            "dead letters": content.replace(b"ingestion queue", b"ingestion dead letters", 1),
            "empty": b"",
            "gone": b"",
        }[damage]
    )
    if damage == "gone":
        path.unlink()
    with pytest.raises(OperationFailed, match=str(path)):
        verify_file(path, form=FORM)


def test_a_full_redis_can_be_drained_and_refuses_a_refill_without_losing_anything(
    own_redis: RedisServer, tmp_path: Path
):
    full = link(own_redis.url)
    fill(full, range(1, 51))
    path = tmp_path / "queue.jsonl"
    full.client.config_set("maxmemory", 1)
    assert drained(full, path) == 50
    assert (full.client.xlen(KEYS.stream), volume(full)) == (0, 0)
    with pytest.raises(RedisConnectionError, match="does not serve"):
        refilled(full, path)
    full.client.config_set("maxmemory", 0)
    assert refilled(full, path) == 50
    assert volume(full) > 0


@pytest.mark.parametrize("taken_out", [0, 200, 300])
def test_a_drain_killed_anywhere_leaves_each_message_once_after_a_refill(
    redis_link: RedisLink, tmp_path: Path, taken_out: int
):
    fill(redis_link, range(1, 301))
    path = tmp_path / "queue.jsonl"
    dump = QueueDump(redis_link)
    write_entries(path, dump.entries(), {}, lambda: None, form=FORM)
    sizes = [(entry_id, entry_bytes(fields)) for entry_id, fields in read_entries(path)]
    assert sum(dump.remove(sizes[:taken_out])) == taken_out
    assert refilled(redis_link, path) == taken_out
    uids = sorted(int(fields[b"uid"]) for _, fields in redis_link.client.xrange(KEYS.stream))
    assert uids == list(range(1, 301))
