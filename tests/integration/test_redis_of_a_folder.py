"""The Redis that a start brings along, in folders with names that redis.conf reads as something else."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
import redis

from email_ingestion.fleet.redis_server import restart_redis, scratch_redis, start_redis

NAMES = ["my mail", 'a "quoted" one', "it's #1", "Post für", "back\\slash", "tab\tand\nline", os.fsdecode(b"caf\xe9")]


@pytest.mark.filterwarnings(
    "ignore:subprocess .* is still running:ResourceWarning"
)  # it goes on when a start has ended
@pytest.mark.parametrize("name", NAMES)
def test_it_starts_whatever_the_folder_is_called(tmp_path: Path, name: str):
    data, pid_file, log = tmp_path / name / "data", tmp_path / name / "pids/redis.pid", tmp_path / name / "redis.out"
    log.parent.mkdir()
    url = start_redis(data, pid_file, log, "secret")
    server = psutil.Process(int(pid_file.read_text()))
    try:
        with redis.Redis.from_url(url) as client, client.pipeline(transaction=True) as transaction:
            client.set("{email_ingestion}:x", "1")
            transaction.xadd("{email_ingestion}:y", {"a": "1"})
            transaction.set("{email_ingestion}:z", "1")
            transaction.execute()
        server.terminate()
        server.wait(60)
        port = int(url.rpartition(":")[2].partition("/")[0])
        restart_redis(data, pid_file, log, port)
        server = psutil.Process(int(pid_file.read_text()))
        with redis.Redis.from_url(url) as client:
            assert client.get("{email_ingestion}:x") == b"1"
            assert client.xlen("{email_ingestion}:y") == 1  # a script's writes are a transaction in the file, too
        with redis.Redis(port=port) as stranger:
            assert stranger.ping()
            assert stranger.dbsize() == 3
            with pytest.raises(redis.exceptions.NoPermissionError):
                stranger.get("{email_ingestion}:x")
    finally:
        server.kill()
        server.wait(60)
    assert list(data.glob("*/appendonlydir/*"))


def test_a_scratch_server_starts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "two words").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "two words"))
    with scratch_redis() as url, redis.Redis.from_url(url) as client:
        assert client.ping()
