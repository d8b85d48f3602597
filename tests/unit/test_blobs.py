"""Blob stores: what a directory does beyond the contract, and what is refused or away."""

from __future__ import annotations

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from email_ingestion.blobs import DiskBlobStore, open_blobs
from email_ingestion.errors import ConfigurationError, SinkUnavailable, TransientError

DATA = bytes(range(256)) * 1000
REF = f"sha256:{hashlib.sha256(DATA).hexdigest()}"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Settings as an S3 client finds them in its environment; nothing answers at the endpoint."""
    pytest.importorskip("obstore")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    return monkeypatch


def test_many_threads_may_put_the_same(tmp_path: Path) -> None:
    blobs = open_blobs(f"file:{tmp_path}")
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(blobs.put, [DATA] * 50)) == {REF}
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [REF.removeprefix("sha256:")]


def test_damaged_bytes_are_not_passed_off_as_the_message(tmp_path: Path) -> None:
    blobs = open_blobs(f"file:{tmp_path}")
    blobs.put(DATA)
    [path] = (path for path in tmp_path.rglob("*") if path.is_file())
    path.write_bytes(DATA[:-1])
    with pytest.raises(TransientError, match="damaged"):
        blobs.get(REF)


def test_a_directory_that_broke_is_unavailable(tmp_path: Path) -> None:
    blobs = open_blobs(f"file:{tmp_path}/blobs")
    (tmp_path / "blobs").rmdir()
    (tmp_path / "blobs").touch()
    for use in (lambda: blobs.put(DATA), blobs.ping):
        with pytest.raises(SinkUnavailable, match="blob directory"):
            use()


def test_a_bucket_that_is_away_is_unavailable(s3: pytest.MonkeyPatch) -> None:
    del s3
    blobs = open_blobs("s3://mail/prefix")
    for use in (lambda: blobs.put(DATA), lambda: blobs.get(REF), lambda: blobs.exists(REF), blobs.ping):
        with pytest.raises(SinkUnavailable, match="s3://mail/prefix does not work") as caught:
            use()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "file:", "file://", "s3://", "data/blobs", "http://example.org/blobs"])
def test_an_address_of_no_store_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="BLOB_URL"):
        open_blobs(url)


def test_a_directory_that_cannot_be_made_is_a_setting_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="BLOB_URL"):
        open_blobs(f"file:{tmp_path}/file/blobs")


def _age(store: Path, days: float, name: str = "*") -> None:
    then = time.time() - days * 86400
    for path in store.glob(f"??/??/{name}"):
        os.utime(path, (then, then))


@pytest.fixture
def disk(tmp_path: Path) -> DiskBlobStore:
    return DiskBlobStore(tmp_path / "blobs")


YESTERDAY = 86400.0


def test_what_is_stored_again_is_young_again_and_stays(disk: DiskBlobStore, tmp_path: Path) -> None:
    disk.put(DATA)
    _age(tmp_path / "blobs", 2)
    before = time.time() - YESTERDAY
    (aged,) = disk.stored_before(before)
    disk.put(DATA)
    assert not disk.remove(aged)
    assert disk.get(REF) == DATA


def test_an_aged_one_is_removed_once(disk: DiskBlobStore, tmp_path: Path) -> None:
    disk.put(DATA)
    _age(tmp_path / "blobs", 2)
    (aged,) = disk.stored_before(time.time() - YESTERDAY)
    assert disk.remove(aged)
    assert not disk.remove(aged)
    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == []


def test_a_collector_that_was_killed_leaves_nothing_missing(disk: DiskBlobStore, tmp_path: Path) -> None:
    disk.put(DATA)
    (path,) = (tmp_path / "blobs").glob("??/??/*")
    path.rename(path.with_name(f".{path.name}-orphan"))
    unfinished = path.with_name(".tmpabc")
    unfinished.touch()
    _age(tmp_path / "blobs", 2, ".tmpabc")
    assert list(disk.stored_before(time.time() - YESTERDAY)) == []
    assert disk.get(REF) == DATA
    assert not unfinished.exists()


def test_writers_and_a_collector_at_once_lose_nothing(disk: DiskBlobStore, tmp_path: Path) -> None:
    disk.put(DATA)
    before = time.time() + 3600  # everything is aged, at every moment but while it is put aside and touched
    (aged,) = disk.stored_before(before)

    def write() -> None:
        for _ in range(100):
            disk.put(DATA)

    def collect() -> None:
        for _ in range(100):
            disk.remove(aged)

    with ThreadPoolExecutor() as threads:
        for done in [threads.submit(write), threads.submit(collect), threads.submit(write)]:
            done.result()
    disk.put(DATA)
    assert disk.get(REF) == DATA


def test_a_directory_that_is_gone_or_empty_is_no_missing_message(tmp_path: Path) -> None:
    """Its disk is not mounted: whoever asks for a blob knows of one that was stored."""
    root = tmp_path / "blobs"
    blobs = open_blobs(f"file:{root}")
    blobs.put(DATA)
    root.rename(tmp_path / "elsewhere")
    for use in (lambda: blobs.get(REF), lambda: blobs.exists(REF), lambda: blobs.put(DATA), blobs.open_spool):
        with pytest.raises(SinkUnavailable, match="mounted"):
            use()
    assert not root.exists()  # made anew, it would hide that the blobs are gone
    root.mkdir()
    for use in (lambda: blobs.get(REF), lambda: blobs.exists(REF)):
        with pytest.raises(SinkUnavailable, match="is empty"):
            use()
    root.rmdir()
    (tmp_path / "elsewhere").rename(root)
    assert blobs.get(REF) == DATA


def test_one_blob_that_is_missing_among_others_is_not_an_outage(tmp_path: Path) -> None:
    blobs = open_blobs(f"file:{tmp_path}")
    blobs.put(b"another")
    assert not blobs.exists(REF)
    with pytest.raises(TransientError, match="is not in"):
        blobs.get(REF)
