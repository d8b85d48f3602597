"""A content is stored while the next mail is fetched, and is named in the stream only when it is there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from email_ingestion.blobs import DiskBlobStore
from email_ingestion.errors import SinkUnavailable
from email_ingestion.events import Downloaded, LoopFailed, Published
from email_ingestion.producer import fetcher, large_message, sync
from gmail_sandbox import RunningSandbox, SandboxSettings, running_sandbox
from tests.servers.redis import RedisServer
from tests.servers.watching import PATIENCE, Watched, letter

LARGE, SMALL = 100_000, 2_000


@pytest.fixture
def sandbox() -> Iterator[RunningSandbox]:
    with running_sandbox(SandboxSettings()) as running:
        yield running


@pytest.fixture(params=["put", "put_file"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which method stores the large message: it comes whole, or in pieces."""
    if request.param == "put_file":
        monkeypatch.setattr(fetcher, "LARGE_BYTES", LARGE // 2)
        monkeypatch.setattr(large_message, "CHUNK_BYTES", LARGE // 10)
    return str(request.param)


@pytest.fixture
def watched(
    sandbox: RunningSandbox, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Watched:
    """What is fetched first, as the newest, is the large message; the small one is a batch of its own."""
    monkeypatch.setattr(sync, "BATCH_BYTES", 2 * SMALL)
    sandbox.deliver(letter(1, SMALL))
    sandbox.deliver(letter(2, LARGE))
    return Watched(sandbox, redis_server, tmp_path, {"blob_threshold_bytes": LARGE // 4})


def test_it_is_named_when_it_is_there_and_the_next_mail_is_fetched_meanwhile(
    watched: Watched, way: str, monkeypatch: pytest.MonkeyPatch
):
    goes_on, whole = threading.Event(), sum(message.size for message in watched.sandbox.messages())
    usual = getattr(DiskBlobStore, way)

    def waiting(*args) -> str:
        assert goes_on.wait(PATIENCE)
        return usual(*args)

    monkeypatch.setattr(DiskBlobStore, way, waiting)
    with watched.running():
        watched.until(lambda: sum(each.size for each in watched.heard.of(Downloaded)) == whole, "both are here")
        assert not watched.queued()
        assert not watched.heard.of(Published)
        goes_on.set()
        watched.arrives()


def test_what_the_store_does_not_take_is_not_named_and_fetched_again(
    watched: Watched, way: str, monkeypatch: pytest.MonkeyPatch
):
    tries: list[int] = []
    usual = getattr(DiskBlobStore, way)

    def full_once(*args) -> str:
        tries.append(len(watched.queued()))
        if len(tries) == 1:
            raise SinkUnavailable("the disk is full")
        return usual(*args)

    monkeypatch.setattr(DiskBlobStore, way, full_once)
    with watched.running():
        watched.arrives()
    assert tries[:2] == [0, 0]
    assert "the disk is full" in " ".join(watched.told(LoopFailed))
