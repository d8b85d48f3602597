"""The Redis that a start, Compose and Kubernetes bring along: folders with odd names, and what a restart keeps."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import psutil
import pytest
import redis
import yaml

from email_ingestion.fleet.redis_server import restart_redis, scratch_redis, start_redis
from tests.servers.ports import free_port
from tests.servers.processes import ROOT, until

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


def test_that_of_compose_and_kubernetes_keeps_a_transaction_over_a_restart(tmp_path: Path):
    compose = yaml.safe_load((ROOT / "deploy/docker/compose.yaml").read_text())
    kubernetes = list(yaml.safe_load_all((ROOT / "deploy/kubernetes/redis.yaml").read_text()))
    (pod,) = (each["spec"]["template"]["spec"] for each in kubernetes if each["kind"] == "StatefulSet")
    line = pod["containers"][0]["command"][2]
    assert compose["services"]["redis"]["command"][2].replace("$$", "$") == line
    for inside, here in (("/etc/redis/redis.conf", ROOT / "config/redis.conf"), ("/tmp/redis.conf", tmp_path / "c")):
        line = line.replace(inside, str(here))
    port, password = free_port(), "s3cr-et"
    command = ["sh", "-c", f"{line.replace('dir /data', f'dir {tmp_path}')} --port {port}"]
    service = redis.Redis(port=port, username="email_ingestion", password=password)
    for kept in (0, 1):
        with subprocess.Popen(command, env=os.environ | {"REDIS_PASSWORD": password}, stdout=subprocess.DEVNULL) as it:
            try:
                until(lambda: _answers(redis.Redis(port=port, password=password)), "it serves")  # by REDISCLI_AUTH
                assert service.xlen("{email_ingestion}:y") == kept
                with service.pipeline(transaction=True) as transaction:
                    transaction.xadd("{email_ingestion}:y", {"a": "1"})
                    transaction.set("{email_ingestion}:z", "1")
                    transaction.execute()
                with pytest.raises(redis.exceptions.AuthenticationError), redis.Redis(port=port) as stranger:
                    stranger.ping()
            finally:
                it.terminate()
                service.close()


def _answers(client: redis.Redis) -> bool:
    with client:
        try:
            return bool(client.ping())
        except redis.exceptions.ConnectionError:  # BusyLoadingError is one
            return False


def test_a_scratch_server_starts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "two words").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "two words"))
    with scratch_redis() as url, redis.Redis.from_url(url) as client:
        assert client.ping()
