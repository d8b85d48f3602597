"""Blob stores: what goes in comes out unchanged, on disk and over the S3 protocol."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from email_ingestion.blobs import Blobs, DiskBlobs, open_blobs
from email_ingestion.errors import ConfigurationError, SinkUnavailable, TransientError

DATA = bytes(range(256)) * 1000
REF = f"sha256:{hashlib.sha256(DATA).hexdigest()}"


class Bucket(BaseHTTPRequestHandler):
    """As much of S3 as objects need: PUT, GET and HEAD in a dictionary that belongs to the server."""

    protocol_version = "HTTP/1.1"

    @property
    def objects(self) -> dict[str, bytes]:
        return self.server.objects  # type: ignore[attr-defined, no-any-return]

    def do_PUT(self) -> None:
        self.objects[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200, b"")

    def do_GET(self) -> None:
        data = self.objects.get(self.path)
        self._answer(404 if data is None else 200, data or b"")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def bucket() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Bucket) as server:
        server.objects = {}  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Settings as an S3 client finds them in its environment; nothing answers at the endpoint."""
    pytest.importorskip("obstore")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    return monkeypatch


@pytest.fixture(params=["file", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "file":
        return open_blobs(f"file:{tmp_path}/deep/blobs")
    server: ThreadingHTTPServer = request.getfixturevalue("bucket")
    request.getfixturevalue("s3").setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    return open_blobs("s3://mail/prefix")


@pytest.mark.parametrize("data", [DATA, b"", b"\0"])
def test_what_was_put_is_got(blobs: Blobs, data: bytes) -> None:
    ref = blobs.put(data)
    assert ref == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert blobs.get(ref) == data
    assert blobs.exists(ref)


def test_putting_twice_is_putting_once(blobs: Blobs) -> None:
    assert blobs.put(DATA) == blobs.put(DATA) == REF
    assert blobs.get(REF) == DATA


def test_what_was_never_put_is_missing_and_may_come_later(blobs: Blobs) -> None:
    assert not blobs.exists(REF)
    with pytest.raises(TransientError, match="BLOB_URL") as caught:
        blobs.get(REF)
    assert not isinstance(caught.value, SinkUnavailable)  # one missing blob must not stop all the others


@pytest.mark.parametrize("ref", ["", "sha256:", "sha256:../../etc/passwd", REF.upper(), REF + "0", "md5:00"])
def test_only_references_of_ours_are_looked_up(blobs: Blobs, ref: str) -> None:
    with pytest.raises(TransientError, match="not a reference"):
        blobs.get(ref)
    with pytest.raises(TransientError, match="not a reference"):
        blobs.exists(ref)


def test_a_sound_store_answers_its_ping(blobs: Blobs) -> None:
    blobs.ping()


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
def disk(tmp_path: Path) -> DiskBlobs:
    return DiskBlobs(tmp_path / "blobs")


YESTERDAY = 86400.0


def test_what_was_stored_lately_is_not_aged(disk: DiskBlobs, tmp_path: Path) -> None:
    disk.put(DATA)
    assert list(disk.aged(time.time() - YESTERDAY)) == []
    _age(tmp_path / "blobs", 2)
    assert list(disk.aged(time.time() - YESTERDAY)) == [(REF, len(DATA))]


def test_what_is_stored_again_is_young_again_and_stays(disk: DiskBlobs, tmp_path: Path) -> None:
    disk.put(DATA)
    _age(tmp_path / "blobs", 2)
    before = time.time() - YESTERDAY
    assert list(disk.aged(before)) == [(REF, len(DATA))]
    disk.put(DATA)
    assert not disk.remove(REF, before)
    assert disk.get(REF) == DATA


def test_an_aged_one_is_removed_once(disk: DiskBlobs, tmp_path: Path) -> None:
    disk.put(DATA)
    _age(tmp_path / "blobs", 2)
    before = time.time() - YESTERDAY
    assert disk.remove(REF, before)
    assert not disk.remove(REF, before)
    assert [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == []


def test_a_collector_that_was_killed_leaves_nothing_missing(disk: DiskBlobs, tmp_path: Path) -> None:
    disk.put(DATA)
    (path,) = (tmp_path / "blobs").glob("??/??/*")
    path.rename(path.with_name(f".{path.name}-orphan"))
    unfinished = path.with_name(".tmpabc")
    unfinished.touch()
    _age(tmp_path / "blobs", 2, ".tmpabc")
    assert list(disk.aged(time.time() - YESTERDAY)) == []
    assert disk.get(REF) == DATA
    assert not unfinished.exists()


def test_writers_and_a_collector_at_once_lose_nothing(disk: DiskBlobs, tmp_path: Path) -> None:
    disk.put(DATA)
    before = time.time() + 3600  # everything is aged, at every moment but while it is put aside and touched

    def write() -> None:
        for _ in range(100):
            disk.put(DATA)

    def collect() -> None:
        for _ in range(100):
            disk.remove(REF, before)

    with ThreadPoolExecutor() as threads:
        for done in [threads.submit(write), threads.submit(collect), threads.submit(write)]:
            done.result()
    disk.put(DATA)
    assert disk.get(REF) == DATA


def test_what_is_spooled_is_kept_like_what_is_put(blobs: Blobs) -> None:
    for _ in range(2):
        with blobs.spool() as spooled:
            spooled.write(DATA[:1000])
            spooled.write(DATA[1000:])
            assert blobs.keep(spooled, REF.removeprefix("sha256:")) == REF
    assert blobs.get(REF) == DATA
    assert blobs.put(DATA) == REF
