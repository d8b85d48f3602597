"""Mail is erased while producer and worker work: from the stream, from a sink's hands, from every byte of the files."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gmail_sandbox import RunningSandbox
from tests.servers.processes import Place, until
from tests.servers.redis import RedisServer
from tests.servers.webhook import SECRET, receiving

ANNA, BERT = "anna@example.org", "bert@example.net"
MARK = secrets.token_hex(24)
EACH = 4  # messages of each, twice


def letter(number: int, sender: str) -> bytes:
    text = MARK if sender == ANNA else "hello"
    head = f"From: <{sender}>\r\nTo: me@example.com\r\nSubject: letter {number}\r\nMessage-ID: <{number}-{sender}>\r\n"
    return f"{head}\r\n{text} {number}\r\n".encode()


def ids_of(here: Place, sender: str) -> set[str]:
    return {row[0] for row in here.rows(f"SELECT email_id FROM emails WHERE from_addr = '{sender}'")}


def places_with(needles: list[bytes], *folders: Path) -> Iterator[str]:
    for path in (each for folder in folders for each in folder.rglob("*") if each.is_file()):
        content = path.read_bytes()
        if any(needle in content for needle in needles):
            yield str(path)


def test_mail_in_the_stream_and_in_the_hands_of_a_sink_is_erased_beside_live_processes(
    here: Place, sandbox: RunningSandbox, own_redis: RedisServer
):
    deliver = [sandbox.deliver(letter(number, sender)) for number in range(EACH) for sender in (ANNA, BERT)]
    held, released = threading.Event(), threading.Event()
    first = f"default:gm:{deliver[0].message.msgid}"

    def answer(email_id: str) -> tuple[int, dict[str, str]]:
        if email_id == first:
            held.set()
            released.wait(60)
        return 204, {}

    with receiving() as receiver, ThreadPoolExecutor() as threads:
        receiver.answer = answer
        here.set(SINKS="webhook,files:out,ndjson:lines.jsonl", WEBHOOK_URL=receiver.url, WEBHOOK_SECRET=SECRET)
        here.set(WEBHOOK_TIMEOUT_SECONDS=50, SINK_TIMEOUT_SECONDS=55, WORKER_LEASE_SECONDS=120)
        producer, worker = here.producer(), here.worker()
        until(lambda: len(here.rows()) == 2 * EACH, "the first mail is in the database")
        assert held.wait(60), "a sink has a message in its hands"
        assert here.run("-m", "email_ingestion", "pause", "worker", "--ttl", "10m").returncode == 0
        for number in range(EACH, 2 * EACH):
            for sender in (ANNA, BERT):
                sandbox.deliver(letter(number, sender))
        stream, client = "{email_ingestion}:stream", own_redis.client()
        until(lambda: client.xlen(stream) == 2 * EACH, "the further mail is in the stream")
        packed = [fields[b"raw"] for _, fields in client.xrange(stream)][::2]
        needles = [MARK.encode(), ANNA.encode(), *packed]
        assert list(places_with(needles, here.folder, own_redis.directory))

        order = ("-m", "email_ingestion", "erase", "--sender", ANNA, "--yes", "--scrub", "--json")
        erasing = threads.submit(here.run, *order)
        until(lambda: client.xlen(stream) == 2 * EACH and not erasing.done(), "it waits for the sink")
        released.set()
        done = erasing.result(120)
        assert done.returncode == 0, done.stdout + done.stderr
        report = json.loads(done.stdout)
        assert (report["matched"], report["open"], report["scrubbed"]) == (2 * EACH, [], True)
        assert list(places_with(needles, here.folder, own_redis.directory)) == []

        assert here.run("-m", "email_ingestion", "resume", "worker").returncode == 0
        until(lambda: len(ids_of(here, BERT)) == 2 * EACH, "the mail of others goes on")
        until(lambda: client.xlen(stream) == 0, "nothing is left in the stream")
        assert here.run("-m", "email_ingestion", "reconcile", "--repair").returncode == 0, (
            "what was erased is not missing"
        )
        assert producer.alive
        assert worker.alive
    assert ids_of(here, ANNA) == set()
    assert list(places_with(needles, here.folder, own_redis.directory)) == []
