"""Our processes under the files of config/ and deploy/: Redis with its restricted user, systemd's notifications."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.exceptions import NoPermissionError

from email_ingestion.cli.backup import backup, restore_backup
from email_ingestion.cli.diagnostics import doctor
from email_ingestion.doctor.redis_checks import CAUSES
from email_ingestion.stream import Keys
from gmail_sandbox import RunningSandbox
from tests.integration.test_snapshot import fill
from tests.servers.commands import command
from tests.servers.missing import program
from tests.servers.ports import free_port, wait_for_port
from tests.servers.processes import ROOT, Place, gmail_settings, place, until

USER, PASSWORD = "email_ingestion", "change-me"
LOGIN = f"{USER}:{PASSWORD}@"
# Who asks, and the words of Redis.
ASKED = re.compile(r"(as its administrator |email-ingestion )?redis-cli ([A-Z]{3}[^`;,]*)")


@pytest.fixture
def configured(tmp_path: Path) -> Iterator[str]:
    """A Redis started with config/redis.conf; the URL of the service's user."""
    port, data = free_port(), tmp_path / "redis"
    data.mkdir()
    options = ["--port", str(port), "--dir", str(data), "--bind", "127.0.0.1"]
    words = [program("redis-server", "redis-server"), str(ROOT / "config" / "redis.conf"), *options]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as server:
        try:
            wait_for_port(port, lambda: server.poll() is None)
            yield f"redis://{LOGIN}127.0.0.1:{port}/0"
        finally:
            server.kill()


class Server:
    """What `fill` needs to know."""

    def __init__(self, url: str) -> None:
        self.url = url


@pytest.fixture
def there(tmp_path: Path, configured: str, sandbox: RunningSandbox) -> Iterator[Place]:
    with place(tmp_path / "there", configured, **gmail_settings(sandbox, tmp_path / "there")) as made:
        yield made


def test_the_restricted_user_can_do_all_we_do_and_no_harm(there: Place, configured: str, sandbox: RunningSandbox):
    for number in range(5):
        sandbox.deliver(b"Subject: letter %d\r\n\r\nhello\r\n" % number)
    assert there.run("producer.py", "--once").returncode == 0
    assert there.run("worker.py", "--drain").returncode == 0
    assert len(there.rows()) == 5
    checked = command(there, doctor)
    assert checked.returncode == 0, checked.stdout
    fill(Server(configured), 20, 4, 3)  # type: ignore[arg-type]
    assert command(there, backup).returncode == 0
    (made,) = (there.folder / "backups").glob("*.tar")
    done = command(there, restore_backup, "--file", str(made), "--force")
    assert done.returncode == 0, done.stderr
    with redis.Redis.from_url(configured) as client:
        assert client.xlen(Keys().dlq) == 3
        for harmful in ("FLUSHALL", "CONFIG GET *", "SHUTDOWN", "KEYS *", "REPLICAOF a 1", "ACL LIST"):
            with pytest.raises(NoPermissionError):
                client.execute_command(*harmful.split())
        with pytest.raises(NoPermissionError):
            client.set("somebody-else's", "x")
    with redis.Redis.from_url(configured.replace(LOGIN, "")) as nobody:
        assert nobody.ping()
        assert nobody.dbsize()
        with pytest.raises(NoPermissionError):
            nobody.xlen(Keys().stream)


def test_what_the_doctor_has_one_ask_redis_everybody_may(configured: str):
    """Changing the server is left to its administrator, and the remedy says so."""
    remedies = [remedy for _, _, remedy in CAUSES]
    asked = [(who, words) for each in remedies for who, words in ASKED.findall(each)]
    assert len(asked) > 4
    with redis.Redis.from_url(configured) as service, redis.Redis.from_url(configured.replace(LOGIN, "")) as anybody:
        for who, words in asked:
            if words.startswith("CONFIG"):
                assert who == "as its administrator "
            else:
                (service if who == "email-ingestion " else anybody).execute_command(*words.split())


def test_systemd_hears_when_a_process_is_ready_lives_and_stops(there: Place, tmp_path: Path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(f"\0{tmp_path}"[:100])
        systemd.settimeout(60)
        there.set(NOTIFY_SOCKET=f"@{tmp_path}"[:100])
        worker = there.worker()
        heard = [systemd.recv(100)]
        while b"WATCHDOG=1" not in heard:
            heard.append(systemd.recv(100))
        assert heard[0] == b"READY=1"
        assert worker.get("/livez")[0] == 200
        assert worker.terminate() == 0
        until(lambda: systemd.recv(100) == b"STOPPING=1", "systemd hears of the stop")
