"""Dead letters on a real Redis: put back once whatever happens, removed only when a file has them."""

from __future__ import annotations

import json
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import zstandard

from email_ingestion.errors import OperationFailed, PermanentError, RedisConnectionError
from email_ingestion.records import Cursor
from email_ingestion.stream import Appender, Consumer, DeadLetterQueue, Keys, open_link, read_gauges
from email_ingestion.stream.codec import encode
from email_ingestion.stream.dead_letter_file import verify_file, write_entries
from email_ingestion.stream.dead_letters import (
    PAGE,
    REPLAY_CHUNK,
    UNKNOWN,
    DeadLetterFilter,
    dead_letter_fields,
    group_failures,
)
from tests.servers.links import link, message
from tests.servers.redis import RedisServer

KEYS = Keys()


@pytest.fixture
def dead_letters(redis_server: RedisServer) -> DeadLetterQueue:
    return DeadLetterQueue(open_link(redis_server.url, "test"))


@pytest.fixture
def consumer(redis_server: RedisServer) -> Consumer:
    made = Consumer(link(redis_server.url), "here-worker-1", 60.0)
    made.ensure_group()
    return made


def _bury(
    server: RedisServer, consumer: Consumer, *uids: int, error: Exception | None = None, reason="permanent"
) -> None:
    """Let messages go through the stream and die there."""
    appender = Appender(link(server.url))
    since = appender.restart_cursor("default", "INBOX", Cursor(1, 0))
    appender.append("default", "INBOX", since, uids[-1], [message(uid) for uid in uids])
    _die(consumer, error or PermanentError("it does not fit"), reason)


def _die(consumer: Consumer, error: Exception, reason="permanent") -> None:
    while dead := consumer.read_new(100, block=False):
        for each in dead:
            assert consumer.dead_letter(
                each, dead_letter_fields(reason, each.attempt, error, "Traceback …", "here-worker-1")
            )


def _add(server: RedisServer, *uids: int) -> None:
    """Put letters where `bury` puts them, many at a time."""
    compressor = zstandard.ZstdCompressor()
    death = dead_letter_fields("permanent", 1, PermanentError("it does not fit"), "", "here-worker-1")
    with server.client() as client:
        pipe = client.pipeline(transaction=False)
        for uid in uids:
            pipe.xadd(KEYS.dlq, encode(message(uid), datetime.now(UTC), compressor) | death)
        pipe.execute()


def _ids(dead_letters: DeadLetterQueue) -> list[str]:
    return [letter.id for letter in dead_letters.letters()]


def _replay_all(dead_letters: DeadLetterQueue) -> int:
    return sum(dead_letters.replay(_ids(dead_letters)))


def _waiting(server: RedisServer) -> list[int]:
    with server.client() as client:
        return [int(fields[b"uid"]) for _, fields in client.xrange(KEYS.stream)]


def test_a_letter_tells_what_it_died_of(redis_server: RedisServer, consumer: Consumer, dead_letters: DeadLetterQueue):
    before = datetime.now(UTC) - timedelta(seconds=1)
    _bury(redis_server, consumer, 7)
    (letter,) = dead_letters.letters()
    assert (letter.email_id, letter.account, letter.mailbox, letter.uid) == ("default:gm:1007", "default", "INBOX", 7)
    assert (letter.reason, letter.error_type, letter.error) == ("permanent", "PermanentError", "it does not fit")
    assert (letter.attempts, letter.replays, letter.instance) == (1, 0, "here-worker-1")
    assert letter.size == len(message(7).raw)
    assert before < datetime.fromisoformat(letter.dead_at) < datetime.now(UTC) + timedelta(seconds=1)
    assert dead_letters.raw(letter.id) == message(7).raw
    assert list(dead_letters.find([letter.id, "1-1"])) == [letter]


def test_all_pages_are_read(redis_server: RedisServer, dead_letters: DeadLetterQueue):
    _add(redis_server, *range(1, 2 * PAGE + 2))
    assert [letter.uid for letter in dead_letters.letters()] == list(range(1, 2 * PAGE + 2))


def test_strangers_entries_are_shown_and_never_fail(redis_server: RedisServer, dead_letters: DeadLetterQueue):
    with redis_server.client() as client:
        client.xadd(KEYS.dlq, {"hello": "world"})
        client.xadd(KEYS.dlq, {b"\xff\xfe": b"\x00\xff", "uid": "none", "raw": b"no zstd", "replays": "many"})
        client.xadd(KEYS.dlq, {"account": b"\xff", "sha256": "x", "gm_msgid": "-", "dead_attempts": "1e9"})
    letters = list(dead_letters.letters())
    assert [letter.reason for letter in letters] == [UNKNOWN] * 3
    assert [letter.uid for letter in letters] == [None] * 3
    assert letters[0].email_id == f"entry:{letters[0].id}"
    assert dead_letters.raw(letters[0].id) is None
    with pytest.raises(PermanentError):
        dead_letters.raw(letters[1].id)
    assert [kind.count for kind in group_failures(letters)] == [3]
    assert _replay_all(dead_letters) == 3


def test_fingerprints_bring_together_what_died_alike(
    redis_server: RedisServer, consumer: Consumer, dead_letters: DeadLetterQueue
):
    _bury(redis_server, consumer, 1, error=PermanentError("row 17 of 'a' is too long"))
    _bury(redis_server, consumer, 2, 3, error=PermanentError("row 99 of 'b' is too long"))
    _bury(redis_server, consumer, 4, error=PermanentError("there is no such thing"))
    _bury(redis_server, consumer, 5, error=PermanentError("row 3 of 'c' is too long"), reason="max_retries")
    letters = list(dead_letters.letters())
    found = group_failures(letters)
    assert [kind.count for kind in found] == [3, 1, 1]
    assert (found[0].first, found[0].last) == (letters[0].dead_at, letters[2].dead_at)
    assert found[0].example == letters[2].id
    chosen = [letter.uid for letter in letters if DeadLetterFilter(fingerprint=found[0].fingerprint).matches(letter)]
    assert chosen == [1, 2, 3]
    assert [letter.uid for letter in letters if DeadLetterFilter(reason="max_retries").matches(letter)] == [5]
    assert not any(DeadLetterFilter(account="other").matches(letter) for letter in letters)


def test_only_those_dead_for_long_are_found(redis_server: RedisServer, dead_letters: DeadLetterQueue):
    now = datetime.now(UTC)
    for hours in (30, 20, 10):
        with redis_server.client() as client:
            at = int((now - timedelta(hours=hours)).timestamp() * 1000)
            client.xadd(KEYS.dlq, {"uid": str(hours)}, id=f"{at}-0")
    assert [letter.uid for letter in dead_letters.letters(now - timedelta(hours=15))] == [30, 20]
    assert list(dead_letters.letters(now - timedelta(days=40_000))) == []


def test_a_replayed_message_is_delivered_as_it_was(
    redis_server: RedisServer, consumer: Consumer, dead_letters: DeadLetterQueue
):
    _bury(redis_server, consumer, 7)
    assert _replay_all(dead_letters) == 1
    assert dead_letters.depth() == 0
    (again,) = consumer.read_new(10)
    assert (again.message, again.attempt) == (message(7), 1)
    assert read_gauges(link(redis_server.url)).volume == again.wire_bytes
    consumer.ack([again])
    gauges = read_gauges(link(redis_server.url))
    assert (gauges.depth, gauges.volume, gauges.dlq_replayed) == (0, 0, 1)


def test_a_message_that_dies_again_says_how_often_and_is_told_of_once(
    redis_server: RedisServer, consumer: Consumer, dead_letters: DeadLetterQueue
):
    _bury(redis_server, consumer, 7)
    for replays in (1, 2, 3):
        (before,) = _ids(dead_letters)
        _replay_all(dead_letters)
        _die(consumer, PermanentError(f"reason {replays}"), "max_retries")
        (letter,) = dead_letters.letters()
        assert (letter.replays, letter.replay_of) == (replays, before)
        assert (letter.reason, letter.error) == ("max_retries", f"reason {replays}")
        assert letter.email_id == "default:gm:1007"
        with redis_server.client() as client:  # as it lies there: a dictionary would hide a field that is there twice
            flat = client.eval("return redis.call('XRANGE', KEYS[1], '-', '+')[1][2]", 1, KEYS.dlq)
        assert max(Counter(flat[::2]).values()) == 1


def test_replaying_twice_puts_back_once(redis_server: RedisServer, dead_letters: DeadLetterQueue):
    _add(redis_server, 1, 2, 3)
    ids = _ids(dead_letters)
    assert (sum(dead_letters.replay(ids)), sum(dead_letters.replay(ids)), sum(dead_letters.replay(ids * 3))) == (
        3,
        0,
        0,
    )
    assert _waiting(redis_server) == [1, 2, 3]


def test_replaying_from_many_sides_at_once_puts_back_once(redis_server: RedisServer):
    uids = list(range(1, 301))
    _add(redis_server, *uids)
    moved: list[int] = []
    barrier = threading.Barrier(6)

    def replay() -> None:
        mine = DeadLetterQueue(open_link(redis_server.url, "test"))
        ids = _ids(mine)
        barrier.wait()
        moved.append(sum(mine.replay(ids)))

    threads = [threading.Thread(target=replay) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(moved) == len(uids)
    assert sorted(_waiting(redis_server)) == uids


def test_a_replay_that_ends_in_the_middle_is_finished_by_the_next(
    redis_server: RedisServer, dead_letters: DeadLetterQueue
):
    uids = list(range(1, 3 * REPLAY_CHUNK + 1))
    _add(redis_server, *uids)
    assert next(dead_letters.replay(_ids(dead_letters))) == REPLAY_CHUNK
    assert dead_letters.depth() == 2 * REPLAY_CHUNK
    assert _replay_all(dead_letters) == 2 * REPLAY_CHUNK
    assert _waiting(redis_server) == uids


def test_what_dies_during_a_replay_is_not_replayed_again(
    redis_server: RedisServer, consumer: Consumer, dead_letters: DeadLetterQueue
):
    _add(redis_server, *range(1, 2 * PAGE))
    replayed = 0
    for letter in dead_letters.letters():
        replayed += sum(dead_letters.replay([letter.id]))
        _die(consumer, PermanentError("again"))
    assert replayed == 2 * PAGE - 1
    assert {letter.replays for letter in dead_letters.letters()} == {1}


def test_a_full_redis_refuses_a_replay_and_keeps_every_letter(redis_server: RedisServer, dead_letters: DeadLetterQueue):
    _add(redis_server, 1, 2, 3)
    ids = _ids(dead_letters)
    with redis_server.client() as client:
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(RedisConnectionError, match="memory"):
                list(dead_letters.replay(ids))
            assert _ids(dead_letters) == ids
            assert client.xlen(KEYS.stream) == 0
            assert client.exists(KEYS.volume, KEYS.replayed) == 0
        finally:
            client.config_set("maxmemory", 0)
    assert sum(dead_letters.replay(ids)) == 3


def test_letters_can_be_exported_and_removed_from_a_full_redis(
    redis_server: RedisServer, dead_letters: DeadLetterQueue, tmp_path: Path
):
    _add(redis_server, 1, 2, 3)
    with redis_server.client() as client:
        client.config_set("maxmemory", 1)
        try:
            write_entries(tmp_path / "letters", dead_letters.entries(_ids(dead_letters)), {}, lambda: None)
            assert sum(map(len, dead_letters.remove(verify_file(tmp_path / "letters").letters))) == 3
        finally:
            client.config_set("maxmemory", 0)


def test_a_file_holds_every_byte_and_exactly_its_letters_are_removed(
    redis_server: RedisServer, dead_letters: DeadLetterQueue, tmp_path: Path
):
    _add(redis_server, *range(1, PAGE + 10))
    with redis_server.client() as client:
        client.xadd(KEYS.dlq, {b"\xff": b"\x00\xff", "text": "Übung\n"})
    path, ids = tmp_path / "new" / "letters.jsonl", _ids(dead_letters)
    more = iter(range(1000, 2000))
    # Somebody is buried after each letter that is written.
    write_entries(path, dead_letters.entries(ids), {"filter": {"all": True}}, lambda: _add(redis_server, next(more)))
    exported = verify_file(path)
    assert list(exported.letters) == ids
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0]["filter"] == {"all": True}
    assert lines[1]["fields"]["dead_reason"] == "permanent"
    assert lines[-2]["fields"]["text"] == "Übung\n"
    assert sum(map(len, dead_letters.remove(exported.letters))) == len(ids)
    assert [letter.uid for letter in dead_letters.letters()] == list(range(1000, 1000 + len(ids)))


@pytest.mark.parametrize("damage", ["cut", "changed", "a line less", "empty"])
def test_a_file_that_is_not_what_was_written_is_refused(
    redis_server: RedisServer, dead_letters: DeadLetterQueue, tmp_path: Path, damage: str
):
    _add(redis_server, 1, 2, 3)
    path = tmp_path / "letters"
    write_entries(path, dead_letters.entries(_ids(dead_letters)), {}, lambda: None)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    broken = {
        "cut": whole[:-40],
        "changed": whole.replace(b"INBOX", b"outbox", 1),
        "a line less": b"".join(lines[:2] + lines[3:]),
        "empty": b"",
    }
    path.write_bytes(broken[damage])
    with pytest.raises(OperationFailed):
        verify_file(path)


def test_a_file_is_never_overwritten_and_a_failure_leaves_none(
    redis_server: RedisServer, dead_letters: DeadLetterQueue, tmp_path: Path
):
    _add(redis_server, 1)
    path = tmp_path / "letters"
    path.write_text("mine")
    with pytest.raises(OperationFailed, match="exists"):
        write_entries(path, dead_letters.entries(_ids(dead_letters)), {}, lambda: None)
    assert path.read_text() == "mine"

    def broken():
        yield from dead_letters.entries(_ids(dead_letters))
        raise RedisConnectionError("gone")

    with pytest.raises(RedisConnectionError):
        write_entries(tmp_path / "other", broken(), {}, lambda: None)
    assert [each.name for each in tmp_path.iterdir()] == ["letters"]


def test_every_call_of_a_one_shot_link_is_tried(own_redis: RedisServer):
    dead_letters = DeadLetterQueue(open_link(own_redis.url, "test"))
    own_redis.kill()
    for _ in range(10):
        with pytest.raises(RedisConnectionError):
            dead_letters.depth()
    own_redis.start()
    assert dead_letters.depth() == 0
