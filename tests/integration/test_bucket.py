"""Large contents in an S3 bucket: a real worker writes them, and they are collected whoever comes in between."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from email_ingestion.blobs import OldBlob, open_blobs, reference
from email_ingestion.blobs.reference import reference_to
from email_ingestion.blobs.s3 import S3BlobStore
from email_ingestion.errors import SinkUnavailable
from email_ingestion.records import Cursor, RawMessage
from email_ingestion.stream import Appender
from tests.servers.bucket import Bucket, make_bucket, running_s3
from tests.servers.commands import told, typed
from tests.servers.links import link, message
from tests.servers.processes import Place, place
from tests.servers.redis import RedisServer

DATA = b"nobody refers to this"
REF = reference_to(DATA)
DAY = 86400.0


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with running_s3() as running:
        yield running


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    made = make_bucket(endpoint)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture
def blobs(bucket: Bucket) -> S3BlobStore:
    return S3BlobStore(bucket.url)


@pytest.fixture
def here(tmp_path: Path, redis_server: RedisServer, bucket: Bucket) -> Iterator[Place]:
    settings = {"BLOB_URL": bucket.url, "BLOB_THRESHOLD_BYTES": 1000}
    with place(tmp_path / "here", redis_server.url, **settings, **bucket.environment) as made:
        yield made


def _letter(uid: int, attachment: bytes, sender: str = "somebody@example.com") -> RawMessage:
    made = EmailMessage()
    made["From"] = sender
    made["Subject"] = f"letter {uid}"
    made.set_content("see what is attached")
    made.add_attachment(attachment, maintype="application", subtype="octet-stream", filename="x.bin")
    return message(uid, raw=made.as_bytes())


def _queued(large: RawMessage, blobs: S3BlobStore) -> RawMessage:
    """As the producer queues it: its bytes are in the bucket."""
    return replace(large, raw=None, raw_ref=blobs.put(large.raw or b""))


def _aged(blobs: S3BlobStore, days: float = 1) -> list[OldBlob]:
    return list(blobs.stored_before(time.time() - days * DAY))


def test_a_worker_writes_and_reads_them_and_collecting_leaves_what_is_named(
    here: Place, bucket: Bucket, blobs: S3BlobStore, redis_server: RedisServer
):
    intake = Appender(link(redis_server.url))
    intake.restart_cursor("default", "INBOX", Cursor(1, 0))
    attached = bytes(range(256)) * 10
    first, second = _letter(1, attached), _letter(2, bytes(5000))
    intake.append("default", "INBOX", Cursor(1, 0), 1, [first])
    drained = here.run("worker.py", "--drain")
    assert drained.returncode == 0, drained.stderr
    intake.append("default", "INBOX", Cursor(1, 1), 2, [_queued(second, blobs)])  # still on its way
    assert blobs.get(reference_to(first.raw or b"")) == first.raw
    assert blobs.get(reference_to(attached)) == attached
    blobs.put(DATA)
    bucket.age(40)
    young = blobs.put(b"somebody will")
    named = {reference_to(first.raw or b""), reference_to(attached), reference_to(second.raw or b"")}

    aside = {"orphans": [REF], "bytes": len(DATA)}
    nothing: dict[str, Any] = {"orphans": [], "bytes": 0}
    assert told(here, "blobs", "collect", "--dry-run") == nothing | {"removed": False, "aside": aside}
    assert told(here, "blobs", "collect") == nothing | {"removed": True, "aside": aside}
    assert told(here, "blobs", "collect") == nothing | {"removed": True, "aside": nothing}  # put aside only now
    assert blobs.exists(REF)
    bucket.age(40, containing="orphans/")
    assert told(here, "blobs", "collect") == aside | {"removed": True, "aside": nothing}
    assert not blobs.exists(REF)
    assert {reference(name.split("/")[2]) for name in bucket.names() if name[0] != "."} == named | {young}

    assert typed(here, "export", first.envelope.email_id, "--eml", "-o", "one.eml").returncode == 0
    assert (here.folder / "one.eml").read_bytes() == first.raw


def test_mail_that_comes_to_need_what_was_just_put_aside_keeps_it(
    here: Place, bucket: Bucket, blobs: S3BlobStore, redis_server: RedisServer
):
    late = _letter(2, bytes(3000))
    queued = _queued(late, blobs)
    bucket.age(40)
    refused = typed(here, "blobs", "collect")
    assert (refused.returncode, "nothing was removed" in refused.stderr) == (2, True)  # a new database
    intake = Appender(link(redis_server.url))
    intake.restart_cursor("default", "INBOX", Cursor(1, 0))
    intake.append("default", "INBOX", Cursor(1, 0), 1, [_letter(1, b"delivered")])
    assert here.run("worker.py", "--drain").returncode == 0
    assert told(here, "blobs", "collect")["aside"]["orphans"] == [queued.raw_ref]
    # The producer found the bytes in their place a moment before.
    intake.append("default", "INBOX", Cursor(1, 1), 2, [queued])
    bucket.age(40)
    assert told(here, "blobs", "collect")["orphans"] == []
    assert blobs.get(queued.raw_ref or "") == late.raw


def test_an_erasure_leaves_nothing_in_the_bucket_but_what_others_have_too(
    here: Place, bucket: Bucket, blobs: S3BlobStore, redis_server: RedisServer
):
    intake = Appender(link(redis_server.url))
    intake.restart_cursor("default", "INBOX", Cursor(1, 0))
    mine, shared, anna = b"only hers" * 500, b"of both" * 500, "anna@example.org"
    delivered = [_letter(1, mine, anna), _letter(2, shared, anna), _letter(3, shared)]
    intake.append("default", "INBOX", Cursor(1, 0), 3, [_queued(each, blobs) for each in delivered])
    drained = here.run("worker.py", "--drain")
    assert drained.returncode == 0, drained.stderr
    waiting = [_queued(_letter(4, b"on its way" * 500, anna), blobs), _queued(_letter(5, b"also" * 900), blobs)]
    intake.append("default", "INBOX", Cursor(1, 3), 5, waiting)
    refs = [reference_to(each) for each in (mine, delivered[0].raw or b"", delivered[1].raw or b"")]
    assert all(blobs.exists(ref) for ref in (*refs, waiting[0].raw_ref or ""))
    (aside,) = [each for each in _aged(blobs, -1) if each.ref == refs[0]]
    assert blobs.remove(aside)  # as a collector does that was wrong: the bytes are put aside
    erased = here.run("-m", "email_ingestion", "erase", "--sender", anna, "--yes", "--scrub", "--json")
    report = json.loads(erased.stdout)
    assert (erased.returncode, report["matched"], report["open"]) == (0, 3, []), erased.stderr
    assert report["removed"]["blobs"] == 4
    left = {reference_to(shared), reference_to(delivered[2].raw or b""), waiting[1].raw_ref}
    assert {reference(name.split("/")[2]) for name in bucket.names() if name[0] != "."} == left
    assert not any(b"only hers" in content or b"anna@" in content for content in bucket.contents())


class Meddled:
    """A store that lets somebody act after each copy, which is where a collector can be caught."""

    def __init__(self, store: Any, act: Callable[[], object]) -> None:
        self._store = store
        self._act = act

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def copy(self, source: str, target: str) -> None:
        self._store.copy(source, target)
        self._act()


def test_a_writer_between_the_steps_of_a_collector_loses_nothing(bucket: Bucket, blobs: S3BlobStore):
    blobs.put(DATA)
    bucket.age(40)
    (orphan,) = _aged(blobs)
    collector = S3BlobStore(bucket.url)
    collector._store = Meddled(collector._store, lambda: blobs.put(DATA))
    assert collector.remove(orphan)
    assert blobs.get(REF) == DATA
    assert _aged(blobs) == []  # and what is left of it has all its time before it


def test_two_collectors_leave_what_the_other_put_aside(bucket: Bucket, blobs: S3BlobStore):
    blobs.put(DATA)
    bucket.age(40)
    (orphan,) = _aged(blobs)
    assert blobs.remove(orphan)
    assert not blobs.remove(orphan)
    bucket.age(40)
    (first,) = _aged(blobs)
    blobs.put(DATA)
    bucket.age(40, containing=orphan.path)
    again = next(each for each in _aged(blobs) if not each.final)
    assert blobs.remove(again)  # one collector puts it aside once more,
    assert blobs.remove(first)  # the other removes the copy it had found
    assert blobs.get(REF) == DATA


def test_writers_and_collectors_at_once_lose_nothing(blobs: S3BlobStore):
    blobs.put(DATA)
    soon = time.time() + 3600  # everything is aged, and what was put aside is not looked for

    def write() -> list[bool]:
        return [blobs.get(blobs.put(DATA)) == DATA for _ in range(25)]

    def collect() -> None:
        for _ in range(25):
            for each in list(blobs.stored_before(soon)):
                if not each.final:
                    blobs.remove(each)

    with ThreadPoolExecutor() as threads:
        writers = [threads.submit(write) for _ in range(2)]
        collectors = [threads.submit(collect) for _ in range(2)]
        assert all(all(writer.result()) for writer in writers)
        for collector in collectors:
            collector.result()


def test_what_is_no_blob_is_not_ours_to_collect(bucket: Bucket, blobs: S3BlobStore):
    foreign = ["notes.txt", "ab/cd/notes.txt", f"orphans/ab/cd/{'0' * 64}", f"ab/cd/{'0' * 64}/{'0' * 32}"]
    for name in foreign:
        blobs._store.put(name, b"theirs")
    bucket.age(400)
    assert _aged(blobs) == []


def test_a_bucket_that_does_not_exist_is_unavailable(endpoint: str, bucket: Bucket):
    blobs = open_blobs("s3://no-such-bucket/prefix")
    for use in (lambda: blobs.put(DATA), lambda: list(blobs.stored_before(0)), blobs.ping):
        with pytest.raises(SinkUnavailable, match="no-such-bucket"):
            use()
