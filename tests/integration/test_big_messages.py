"""A message too large for memory goes through a file; one too large for us is left out by name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from email_ingestion.blobs import open_blobs
from email_ingestion.events import ConnectionFailed, Quarantined, Skipped, TooLarge
from email_ingestion.producer import fetcher, large_message
from gmail_sandbox import RunningSandbox, SandboxSettings, running_sandbox
from tests.servers.redis import RedisServer
from tests.servers.watching import Watched, letter


@pytest.fixture
def sandbox() -> Iterator[RunningSandbox]:
    with running_sandbox(SandboxSettings()) as running:
        yield running


@pytest.fixture
def watched(
    sandbox: RunningSandbox, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Watched:
    monkeypatch.setattr(fetcher, "LARGE_BYTES", 40_000)
    monkeypatch.setattr(large_message, "CHUNK_BYTES", 10_000)
    return Watched(sandbox, redis_server, tmp_path)


def entries(watched: Watched) -> list[dict[bytes, bytes]]:
    with watched.redis.client() as client:
        return [fields for _, fields in client.xrange(watched.keys.stream)]


@pytest.mark.parametrize("size", [100_000, 50_000 + 13])
def test_a_big_message_arrives_in_pieces_and_whole(watched: Watched, size: int):
    raw = letter(1, size)
    raw += b"x" * (50_000 - len(raw) % 50_000 if size == 100_000 else 0)  # a whole number of pieces, and not
    watched.sandbox.deliver(raw)
    watched.sandbox.deliver(letter(2))
    with watched.running():
        watched.arrives()
    big = max(entries(watched), key=lambda fields: int(fields[b"size"]))
    assert b"raw" not in big
    assert int(big[b"size"]) == len(raw)
    assert big[b"raw_ref"].decode() == f"sha256:{hashlib.sha256(raw).hexdigest()}"
    assert open_blobs(watched.settings.blob_url).get(big[b"raw_ref"].decode()) == raw


def test_one_that_cannot_be_sent_is_asked_for_again(watched: Watched):
    watched.sandbox.deliver(letter(1, 100_000))
    watched.arm_fault("uid_system_error", uid=1, count=2)  # the first part, then the whole
    with watched.running():
        watched.hears(Quarantined, uid=1)
        watched.arrives()


def test_a_connection_lost_between_pieces_loses_and_doubles_nothing(watched: Watched):
    watched.sandbox.deliver(letter(1, 100_000))
    watched.arm_fault("drop_mid_literal", after_bytes=500)
    with watched.running():
        watched.hears(ConnectionFailed)
        watched.arrives()


def test_one_above_the_limit_is_left_out_by_name(watched: Watched):
    limited = Watched(watched.sandbox, watched.redis, watched.folder, {"imap_message_max_bytes": 20_000})
    limited.sandbox.deliver(letter(1, 100_000))
    limited.sandbox.deliver(letter(2))
    with limited.running():
        told = limited.hears(TooLarge, uid=1)
        limited.until(lambda: len(entries(limited)) == 1, "the other one")
    assert told.size > 90_000
    assert [event.count for event in limited.heard.of(Skipped) if event.reason == "too_large"] == [1]
    assert limited.metric("emails_skipped_total", reason="too_large") == 1
