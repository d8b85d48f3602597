"""Addresses of processes elsewhere stand in Redis, where anybody may have written them: the web process asks them."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from email_ingestion.ops.peers import address_proof
from email_ingestion.settings import load_settings
from email_ingestion.stream import announce_presence, read_gauges
from email_ingestion.web.live_system import LiveSystem
from tests.servers.links import link
from tests.servers.processes import until
from tests.servers.receiver import served
from tests.servers.redis import RedisServer

TOKEN = "r" * 40
STATUS = {
    "component": "worker",
    "instance": "there-worker-1",
    "status": "ready",
    "pid": 7,
    "statistics": {},
    "circuit_breakers": [],
    "checks": [],
    "accounts": [],
}


class Listener:
    """Somebody's server, and what it was asked; it answers with `parts`."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []
        self.parts: list[bytes] = [json.dumps(STATUS).encode()]
        self.port = 0


@contextmanager
def listening() -> Iterator[Listener]:
    found = Listener()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append((self.path, self.headers["Authorization"]))
            self.send_response(200)
            self.end_headers()
            try:
                for part in found.parts:
                    self.wfile.write(part)
            except OSError:
                pass

        def log_message(self, *_: object) -> None:
            pass

    with served(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as found.port:
        yield found


@pytest.fixture
def system(tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveSystem]:
    """What the web process knows; the name `elsewhere` leads to this machine."""
    resolve = socket.getaddrinfo

    def resolved(host: Any, *args: Any, **options: Any) -> Any:
        return resolve("127.0.0.1" if host in {"elsewhere", b"elsewhere"} else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    (tmp_path / "read_token").write_text(TOKEN)
    settings = load_settings(
        redis_url=redis_server.url, pid_dir=tmp_path / "pids", ops_read_token_file=tmp_path / "read_token",
        database_url=f"sqlite:///{tmp_path}/ledger.db",
    )  # fmt: skip
    with closing(LiveSystem(settings)) as opened:
        yield opened


def _found(system: LiveSystem, server: RedisServer, url: object, **more: object) -> list[Any]:
    presence = {"component": "worker", "instance": "there-worker-1", "pid": 7, "host": "there", "ops_url": url}
    announce_presence(link(server.url), presence | more)
    there = {each["ops_proof"] for each in read_gauges(link(server.url)).processes}
    system.redis.forget()

    def is_known() -> bool:
        gauges = system.redis.get().value
        return gauges is not None and {each["ops_proof"] for each in gauges.processes} == there

    until(is_known, "the presence is known")
    return system._read_processes()


def test_the_token_goes_only_to_an_address_that_a_process_of_ours_has_written(
    system: LiveSystem, redis_server: RedisServer
) -> None:
    with listening() as there:
        url = f"http://elsewhere:{there.port}"
        for proof in (
            None,
            "",
            "x",
            address_proof("another token", url),
            address_proof(TOKEN, "http://other:1"),
            "\u00e4",
        ):
            there.asked.clear()
            (found,) = _found(system, redis_server, url, ops_proof=proof)
            assert there.asked == [("/status", None), ("/metrics", None)]
            assert found.body == STATUS
        there.asked.clear()
        _found(system, redis_server, url, ops_proof=address_proof(TOKEN, url))
        assert there.asked == [("/status", f"Bearer {TOKEN}"), ("/metrics", f"Bearer {TOKEN}")]


@pytest.mark.parametrize(
    "url",
    [
        *("http://169.254.169.254:80", "http://[fe80::1]:80", "http://[::ffff:169.254.169.254]:80", "http://[::1]:{port}"),
        *("http://127.1:{port}", "http://2130706433:{port}", "http://0x7f.1:{port}", "http://0:{port}"),
        *("http://0.0.0.0:{port}", "http://elsewhere:{port}/latest/meta-data?", "http://elsewhere:{port}/#"),
        *("http://a@elsewhere:{port}", "http://[", "https://elsewhere:{port}", "file:///etc/passwd", "//x", 5),
        *("http://elsewhere", "http://elsewhere:{port}\r\nX: y", "http://elsewhere:{port}\n"),
        *("http://localhost:{port}", "http://a.localhost:{port}", "http://239.0.0.1:80", "", None, ["x"]),
    ],
)  # fmt: skip
def test_what_is_no_plain_address_of_another_machine_is_not_asked(
    system: LiveSystem, redis_server: RedisServer, url: Any
) -> None:
    with listening() as there:
        address = url.replace("{port}", str(there.port)) if isinstance(url, str) else url
        assert _found(system, redis_server, address) == []
        assert there.asked == []


@pytest.mark.parametrize(
    "parts",
    [
        [b'{"a": "'] + [b"x" * 1_000_000] * 10,
        [b"[" * 100_000],
        [b"[]"],
        [b"{}"],
        [b'{"component": 1, "statistics": []}'],
        [json.dumps(STATUS | {"checks": "x"}).encode()],
        [b"\xff\xfe"],
    ],
    ids=lambda parts: repr(parts[0][:12]),
)
def test_an_answer_that_is_none_of_ours_counts_as_none(
    system: LiveSystem, redis_server: RedisServer, parts: list[bytes]
) -> None:
    with listening() as there:
        there.parts = parts
        (found,) = _found(system, redis_server, f"http://elsewhere:{there.port}")
        assert found.body is None


def test_names_of_sinks_in_redis_do_not_become_any_number_of_labels(redis_server: RedisServer) -> None:
    names = {f"sink{n}": 1.0 for n in range(5000)} | {"x" * 10_000: 1.0, "a\nb": 1.0, "": 1.0, "files": True}
    there = link(redis_server.url)
    announce_presence(there, {"component": "worker", "instance": "a", "sinks_oldest": dict(list(names.items())[:900])})
    announce_presence(there, {"component": "worker", "instance": "b", "sinks_oldest": dict(list(names.items())[4997:])})
    found = [each["sinks_oldest"] for each in read_gauges(there).processes]
    assert sorted(map(len, found)) == [3, 64]
    assert all(name.isprintable() and at < math.inf for each in found for name, at in each.items())
