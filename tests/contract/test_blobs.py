"""Blob stores, a directory and a bucket: what goes in comes out unchanged, and goes only when it is old."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from email_ingestion.blobs import BlobStore, open_blobs
from email_ingestion.errors import ContentLost, SinkUnavailable, TransientError
from tests.servers.bucket import make_bucket, running_s3

DATA = bytes(range(256)) * 1000
REF = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
DAY = 86400.0


@dataclass(frozen=True)
class Store:
    blobs: BlobStore
    age: Callable[[float], None]  # all that is in it now, by days
    names: Callable[[], list[str]]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with running_s3() as running:
        yield running


@pytest.fixture(params=["directory", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "directory":
        return _directory(tmp_path / "deep" / "blobs")
    bucket = make_bucket(request.getfixturevalue("endpoint"))
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    return Store(open_blobs(bucket.url), bucket.age, bucket.names)


def _directory(root: Path) -> Store:
    def age(days: float) -> None:
        for path in root.glob("??/??/*"):
            then = path.stat().st_mtime - days * DAY
            os.utime(path, (then, then))

    def names() -> list[str]:
        return [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]

    return Store(open_blobs(f"file:{root}"), age, names)


@pytest.fixture
def blobs(store: Store) -> BlobStore:
    return store.blobs


@pytest.mark.parametrize("data", [DATA, b"", b"\0"])
def test_what_was_put_is_got(blobs: BlobStore, data: bytes) -> None:
    ref = blobs.put(data)
    assert ref == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert blobs.get(ref) == data
    assert blobs.exists(ref)


def test_putting_twice_is_putting_once(store: Store) -> None:
    assert store.blobs.put(DATA) == store.blobs.put(DATA) == REF
    assert store.blobs.get(REF) == DATA
    assert len(store.names()) == 1


def test_what_is_spooled_is_kept_like_what_is_put(blobs: BlobStore) -> None:
    for _ in range(2):
        with blobs.open_spool() as spooled:
            spooled.write(DATA[:1000])
            spooled.write(DATA[1000:])
            assert blobs.put_file(spooled, REF.removeprefix("sha256:")) == REF
    assert blobs.get(REF) == DATA
    assert blobs.put(DATA) == REF


def test_chunks_are_the_bytes_and_what_is_missing_has_none(blobs: BlobStore) -> None:
    blobs.put(DATA * 20)
    assert b"".join(blobs.chunks(f"sha256:{hashlib.sha256(DATA * 20).hexdigest()}")) == DATA * 20
    with pytest.raises(ContentLost, match="BLOB_URL"):
        list(blobs.chunks(REF))


def test_a_damaged_one_is_replaced_when_that_is_asked_for(store: Store) -> None:
    with store.blobs.open_spool() as spooled:
        spooled.write(b"x" * len(DATA))
        store.blobs.put_file(spooled, REF.removeprefix("sha256:"))
    with pytest.raises(ContentLost, match="damaged"):
        store.blobs.get(REF)
    with store.blobs.open_spool() as spooled:
        spooled.write(DATA)
        store.blobs.put_file(spooled, REF.removeprefix("sha256:"), replace=True)
    assert store.blobs.get(REF) == DATA
    assert len(store.names()) == 1


def test_what_was_never_put_is_missing_and_may_come_later(blobs: BlobStore) -> None:
    blobs.put(b"another")  # a directory without a single blob is taken for a disk that is not mounted
    assert not blobs.exists(REF)
    with pytest.raises(TransientError, match="BLOB_URL") as caught:
        blobs.get(REF)
    assert not isinstance(caught.value, SinkUnavailable)  # one missing blob must not stop all the others


@pytest.mark.parametrize("ref", ["", "sha256:", "sha256:../../etc/passwd", REF.upper(), REF + "0", "md5:00"])
def test_only_references_of_ours_are_looked_up(blobs: BlobStore, ref: str) -> None:
    with pytest.raises(TransientError, match="not a reference"):
        blobs.get(ref)
    with pytest.raises(TransientError, match="not a reference"):
        blobs.exists(ref)


def test_a_sound_store_answers_its_ping(blobs: BlobStore) -> None:
    blobs.ping()


def test_what_was_stored_lately_is_not_aged(store: Store) -> None:
    store.blobs.put(b"old")
    store.age(2)
    store.blobs.put(DATA)
    store.blobs.ping()
    before = time.time() - DAY
    (aged,) = store.blobs.stored_before(before)
    assert (aged.ref, aged.size, aged.before) == (f"sha256:{hashlib.sha256(b'old').hexdigest()}", 3, before)
    store.age(2)
    assert sorted(each.size for each in store.blobs.stored_before(before)) == [3, len(DATA)]


def test_an_orphan_is_gone_after_two_collections_at_most(store: Store) -> None:
    store.blobs.put(DATA)
    for _ in range(2):
        store.age(2)
        for aged in list(store.blobs.stored_before(time.time() - DAY)):
            assert store.blobs.remove(aged)
    assert store.names() == []
    assert not store.blobs.exists(REF)


def test_what_is_stored_after_an_orphan_was_listed_is_there(store: Store) -> None:
    store.blobs.put(DATA)
    store.age(2)
    (aged,) = store.blobs.stored_before(time.time() - DAY)
    store.blobs.put(DATA)
    store.blobs.remove(aged)
    assert store.blobs.exists(REF)
    assert store.blobs.get(REF) == DATA
