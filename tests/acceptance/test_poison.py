"""One poison message blocks nothing: its neighbours are delivered, it ends as a dead letter, the workers live."""

from __future__ import annotations

from pathlib import Path

from email_ingestion.stream import Keys
from gmail_sandbox import RunningSandbox
from tests.servers.poison import SINK_SITE, poisoned_python
from tests.servers.processes import Place, until
from tests.servers.redis import RedisServer


def _letter(number: int, poison: str = "") -> bytes:
    head = f"X-Poison: {poison}\r\n" if poison else ""
    return f"{head}Subject: letter {number}\r\nMessage-ID: <{number}@example.org>\r\n\r\nhello\r\n".encode()


def _dead(server: RedisServer) -> list[dict[bytes, bytes]]:
    with server.client() as client:
        return [fields for _, fields in client.xrange(Keys().dlq)]


def test_a_message_that_aborts_the_parser_ends_as_poison_among_a_thousand_delivered(
    here: Place, sandbox: RunningSandbox, own_redis: RedisServer, tmp_path: Path
):
    for number in range(1001):
        sandbox.deliver(_letter(number, "abort" if number == 500 else ""))
    here.set(PYTHONPATH=poisoned_python(tmp_path / "site"), WORKER_MAX_RETRIES=1)
    workers = [here.worker(1), here.worker(2)]
    here.producer()
    until(lambda: len(here.rows("SELECT 1 FROM emails")) == 1000, "a thousand messages in the database")
    (letter,) = until(lambda: _dead(own_redis), "a dead letter")
    assert letter[b"dead_reason"] == b"poison"
    assert letter[b"dead_error_type"] == b"ParserDied"
    assert all(worker.alive for worker in workers)
    assert "letter 500" not in {row[0] for row in here.rows("SELECT subject FROM emails")}
    until(lambda: workers[0].status()["stream"]["depth"] == 0, "the stream is empty")


def test_a_message_that_kills_its_worker_again_and_again_is_found_out_and_buried(
    here: Place, sandbox: RunningSandbox, own_redis: RedisServer, tmp_path: Path
):
    for number in range(30):
        sandbox.deliver(_letter(number, "sink" if number == 7 else ""))
    assert here.run("producer.py", "--once").returncode == 0
    here.set(PYTHONPATH=poisoned_python(tmp_path / "site", SINK_SITE), WORKER_MAX_RETRIES=1)
    worker = here.worker()

    def supervised() -> list[dict[bytes, bytes]]:
        nonlocal worker
        if not worker.alive:  # as systemd would
            worker = here.worker()
        return _dead(own_redis)

    (letter,) = until(supervised, "a dead letter")
    assert letter[b"dead_reason"] == b"poison"
    until(lambda: len(here.rows("SELECT 1 FROM emails")) == 29, "all neighbours in the database")
    assert worker.alive
