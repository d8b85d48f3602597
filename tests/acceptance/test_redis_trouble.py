"""Whatever Redis does, both processes stay up, say why nothing moves, and go on by themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

import pytest
import redis

from email_ingestion.stream import GROUP, Keys
from gmail_sandbox import RunningSandbox
from tests.servers.processes import Place, Running, until
from tests.servers.redis import RedisServer


def _letter(number: int) -> bytes:
    return f"Subject: letter {number}\r\nMessage-ID: <{number}@example.org>\r\n\r\nhello\r\n".encode()


def _subjects(here: Place) -> list[str]:
    return sorted(row[0] for row in here.rows("SELECT subject FROM emails"))


def _expect(here: Place, count: int) -> None:
    wanted = sorted(f"letter {number}" for number in range(count))
    until(lambda: len(here.rows("SELECT 1 FROM emails")) >= count, f"{count} messages in the database")
    assert _subjects(here) == wanted


@pytest.fixture
def running(here: Place, sandbox: RunningSandbox) -> tuple[Running, Running]:
    """Producer and worker at work: the first messages are delivered."""
    here.set(CB_RECOVERY_TIMEOUT=1, CB_FAIL_MAX=3, IMAP_POLL_SECONDS=2)
    producer, worker = here.producer(), here.worker()
    for number in range(3):
        sandbox.deliver(_letter(number))
    _expect(here, 3)
    for process in (producer, worker):
        until(lambda process=process: process.get("/ready")[0] == 200, f"{process.stem} is ready")
    return producer, worker


@contextmanager
def refused(server: RedisServer) -> Iterator[None]:
    server.kill()
    yield
    server.start()


@contextmanager
def hanging(server: RedisServer) -> Iterator[None]:
    server.freeze()
    yield
    server.thaw()


@contextmanager
def without_its_data(server: RedisServer) -> Iterator[None]:
    server.kill()
    server.forget()
    yield
    server.start()


@contextmanager
def configured(server: RedisServer, name: str, value: object, usual: object) -> Iterator[None]:
    with server.client() as client:
        client.config_set(name, value)
        yield
        client.config_set(name, usual)


def out_of_memory(server: RedisServer):
    return configured(server, "maxmemory", 1, 0)


def without_replicas(server: RedisServer):
    return configured(server, "min-replicas-to-write", 1, 0)


@contextmanager
def read_only(server: RedisServer) -> Iterator[None]:
    with server.client() as client:
        client.replicaof("127.0.0.1", 1)
        yield
        client.replicaof("NO", "ONE")


@contextmanager
def with_another_password(server: RedisServer) -> Iterator[None]:
    with server.client() as client:
        client.config_set("requirepass", "changed")
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        yield
        client.config_set("requirepass", "")


@contextmanager
def failing_to_save(server: RedisServer) -> Iterator[None]:
    with server.client() as client:
        hidden = server.directory / "hidden"
        hidden.mkdir()
        client.config_set("dir", str(hidden))
        hidden.rmdir()
        client.config_set("save", "1 1")  # last: a save that begins before would leave a file in there
        client.set("something", "to save")
        with suppress(redis.ResponseError):  # that it fails is the point
            client.bgsave()
        until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", "a failed save")
        yield
        client.config_set("save", "")
        client.config_set("dir", str(server.directory))


def without_rights(*commands: str) -> Callable[[RedisServer], AbstractContextManager[None]]:
    """Take commands from the user of the processes, while they run."""

    @contextmanager
    def trouble(server: RedisServer) -> Iterator[None]:
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "default", *(f"-{command}" for command in commands))
            yield
            client.execute_command("ACL", "SETUSER", "default", *(f"+{command}" for command in commands))

    return trouble


TROUBLES = {
    "refused": refused,
    "hanging": hanging,
    "out of memory": out_of_memory,
    "without replicas": without_replicas,
    "read-only": read_only,
    "another password": with_another_password,
    "failing to save": failing_to_save,
    "without its data": without_its_data,
    "without XACK": without_rights("xack"),
    "without XDEL and HSET": without_rights("xdel", "hset"),
}


# Those in which Redis answers nothing at all; in the others it refuses to write, and reading goes on.
SILENT = {"refused", "hanging", "another password", "without its data"}


# What `/ready` says of those that only a person can mend.
CAUSES = {
    "without XACK": "NOPERM its user may not run XACK:",
    "without XDEL and HSET": "NOPERM its user may not run XDEL, HSET:",
}


@pytest.mark.parametrize("trouble", list(TROUBLES))
def test_processes_say_why_and_go_on_by_themselves(
    running: tuple[Running, Running], here: Place, sandbox: RunningSandbox, own_redis: RedisServer, trouble: str
):
    producer, worker = running
    with TROUBLES[trouble](own_redis):
        for process in running:
            code, body = until(lambda process=process: _not_ready(process), f"{process.stem} is not ready")
            assert any("redis" in reason for reason in json.loads(body)["reasons"])
            assert code == 503
            if trouble in CAUSES:
                until(lambda process=process: CAUSES[trouble] in process.get("/ready")[1], f"{process.stem} tells why")
            assert process.get("/health")[0] == 200
        sandbox.deliver(_letter(3))
        if trouble in SILENT:
            until(lambda: _breaker(producer) in {"OPEN", "HALF_OPEN"}, "the breaker opens")
        for process in running:
            until(lambda process=process: "RedisConnectionError" in process.log(), f"{process.stem} logs it")
    _expect(here, 4)
    for process in running:
        until(lambda process=process: process.get("/ready")[0] == 200, f"{process.stem} is ready again")
        assert process.alive
    until(lambda: _breaker(producer) == "CLOSED", "the breaker closes")
    with own_redis.client() as client:
        assert client.xlen(Keys().dlq) == 0
    assert "Traceback" not in producer.log() + worker.log()


def test_what_another_program_put_under_our_names_is_set_aside_and_mail_goes_on(
    running: tuple[Running, Running], here: Place, sandbox: RunningSandbox, own_redis: RedisServer
):
    with own_redis.client() as client:
        for name in (Keys().volume, Keys().priority):
            client.delete(name)
            client.rpush(name, "theirs")
        sandbox.deliver(_letter(3))
        _expect(here, 4)
        kept = {key for key in client.scan_iter("*foreign*") if client.lrange(key, 0, -1) == [b"theirs"]}
        assert len(kept) == len((Keys().volume, Keys().priority))
    assert "redis_key_set_aside" in "".join(process.log() for process in running)
    for process in running:
        until(lambda process=process: process.get("/ready")[0] == 200, f"{process.stem} is ready")


def _not_ready(process: Running) -> tuple[int, str] | None:
    code, body = process.get("/ready")
    return (code, body) if code == 503 and json.loads(body)["status"] == "not_ready" else None


def _breaker(process: Running) -> str:
    breakers = process.status()["circuit_breakers"]
    return next(breaker["state"] for breaker in breakers if breaker["name"] == "redis")


def test_a_flush_loses_no_mail_and_doubles_none(
    running: tuple[Running, Running], here: Place, sandbox: RunningSandbox, own_redis: RedisServer
):
    with own_redis.client() as client:
        client.flushall()
    sandbox.deliver(_letter(3))
    _expect(here, 4)
    assert all(process.alive for process in running)


def test_a_group_somebody_destroyed_is_made_again(
    running: tuple[Running, Running], here: Place, sandbox: RunningSandbox, own_redis: RedisServer
):
    with own_redis.client() as client:
        client.xgroup_destroy(Keys().stream, GROUP)
    sandbox.deliver(_letter(3))
    _expect(here, 4)


def test_a_full_redis_still_drains(here: Place, sandbox: RunningSandbox, own_redis: RedisServer):
    for number in range(50):
        sandbox.deliver(_letter(number))
    assert here.run("producer.py", "--once").returncode == 0
    with own_redis.client() as client:
        client.config_set("maxmemory", 1)
    worker = here.worker()
    _expect(here, 50)
    until(lambda: worker.metric("email_ingestion_redis_memory_max_bytes") == 1, "what fills it is shown")
    assert worker.metric("email_ingestion_active_workers") is None


def test_both_processes_start_during_an_outage_and_answer(here: Place, sandbox: RunningSandbox, own_redis: RedisServer):
    own_redis.kill()
    here.set(CB_RECOVERY_TIMEOUT=1, LOG_LEVEL="DEBUG")
    producer, worker = here.producer(), here.worker()
    for process in (producer, worker):
        until(lambda process=process: _not_ready(process), f"{process.stem} answers")
        assert process.status()["stream"]["depth"] is None
        assert "email_ingestion_stream_depth" not in process.get("/metrics")[1]
    sandbox.deliver(_letter(0))
    own_redis.start()
    _expect(here, 1)
