"""An import that is broken off, one that meets a full stream, and two at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from email_ingestion.blobs import open_blobs
from email_ingestion.errors import OperationFailed, RedisConnectionError
from email_ingestion.producer.mbox_import import MboxImport
from email_ingestion.producer.selection import FetchFilter
from email_ingestion.stream import Appender, EntryScanner, Keys
from tests.servers.links import history_uids, link
from tests.servers.redis import RedisServer

COUNT = 1300  # three batches


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "a.mbox"
    with made.open("wb") as file:
        for number in range(COUNT):
            labels = b"Spam" if number % 100 == 99 else b"Inbox"
            file.write(b"From x@xxx Mon Oct 16 01:29:30 +0000 2023\nX-GM-MSGID: %d\nX-Gmail-Labels: " % (number + 1))
            file.write(labels + b"\nSubject: %d\n\n%s\n\n" % (number, b"x" * (300_000 if number == 700 else 100)))
    return made


def _import(server: RedisServer, path: Path, known=lambda messages: set(), room=lambda: None) -> MboxImport:
    return MboxImport(
        "default",
        path,
        appender=Appender(link(server.url)),
        blobs=open_blobs(f"file:{path.parent}/blobs"),
        blob_threshold=262_144,
        fetch_filter=FetchFilter(frozenset(["Spam"])),
        known_ids=known,
        wait_for_capacity=room,
    )


def _queued(server: RedisServer) -> list[int]:
    return [entry.gm_msgid for page in EntryScanner(link(server.url), Keys()).stream_pages() for entry in page.entries]


WANTED = [number + 1 for number in range(COUNT) if number % 100 != 99]


def test_an_import_that_is_broken_off_goes_on_where_it_was(redis_server: RedisServer, path: Path):
    steps = _import(redis_server, path).steps()
    next(steps)
    assert 0 < len(_queued(redis_server)) < len(WANTED)
    rest = _import(redis_server, path)
    list(rest.steps())
    assert _queued(redis_server) == WANTED
    assert 0 < rest.report.start_offset < rest.report.end_offset == rest.report.size
    assert len(history_uids(redis_server.url)) == len(WANTED)
    assert rest.report.messages < COUNT


def test_one_that_lost_redis_goes_on_too(own_redis: RedisServer, path: Path):
    def step(made: MboxImport) -> Iterator[None]:
        yield from made.steps()

    steps = step(_import(own_redis, path))
    next(steps)
    own_redis.kill()
    with pytest.raises(RedisConnectionError):
        list(steps)
    own_redis.start()
    list(_import(own_redis, path).steps())
    assert _queued(own_redis) == WANTED


def test_two_at_a_time_queue_every_message_once(redis_server: RedisServer, path: Path):
    one, other = _import(redis_server, path), _import(redis_server, path)
    turns = [one.steps(), other.steps()]
    while turns:
        for turn in list(turns):
            try:
                next(turn)
            except StopIteration:
                turns.remove(turn)
    assert _queued(redis_server) == WANTED
    assert one.report.queued + other.report.queued == len(WANTED)


def test_room_is_asked_for_before_every_batch_and_what_is_known_stays_out(redis_server: RedisServer, path: Path):
    asked: list[int] = []
    made = _import(
        redis_server,
        path,
        known=lambda messages: {each.envelope.email_id for each in messages if each.envelope.gm_msgid % 2},
        room=lambda: asked.append(len(_queued(redis_server))),
    )
    with suppress(StopIteration):
        list(made.steps())
    assert len(asked) >= 3
    assert asked[0] == 0
    assert _queued(redis_server) == [number for number in WANTED if number % 2 == 0]
    assert made.report.excluded == {"excluded_label": 13, "known": sum(number % 2 for number in WANTED)}
    assert made.report.as_dict()["complete"] is True


def test_a_large_message_goes_to_the_blob_store(redis_server: RedisServer, path: Path):
    list(_import(redis_server, path).steps())
    assert len([each for each in (path.parent / "blobs").rglob("*") if each.is_file()]) == 1


@pytest.mark.parametrize("content", [None, b"hello\n", b""])
def test_what_is_no_mbox_is_told_in_a_sentence(redis_server: RedisServer, tmp_path: Path, content: bytes | None):
    path = tmp_path / "a.mbox"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OperationFailed, match=str(path)):
        list(_import(redis_server, path).steps())
