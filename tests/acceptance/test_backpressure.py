"""Above its limits the stream is left alone: Gmail is the buffer, the connection stays, and nothing is trimmed."""

from __future__ import annotations

import base64
import itertools
import json
import random
import urllib.request

import pytest

from email_ingestion.stream import Keys
from gmail_sandbox import RunningSandbox
from tests.servers.processes import Place, until
from tests.servers.redis import RedisServer

MIB = 1024 * 1024


def _logins(sandbox: RunningSandbox) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{sandbox.control_port}/stats", timeout=10) as answer:
        return json.load(answer)["connections"]["total"]


def _letter(number: int) -> bytes:
    return b"Subject: letter %d\r\n\r\n%b" % (number, base64.encodebytes(random.Random(number).randbytes(10_000)))


@pytest.mark.parametrize(("name", "value"), [("STREAM_MAX_DEPTH", 50), ("STREAM_MAX_BYTES", MIB)])
def test_the_producer_waits_above_the_limit_and_goes_on_when_there_is_room(
    here: Place, sandbox: RunningSandbox, own_redis: RedisServer, name: str, value: int
):
    here.set(**{name: value})
    producer = here.producer()
    until(lambda: producer.status()["accounts"][0]["watch"] == "idle", "the producer waits for mail")
    logins = _logins(sandbox)
    sent = itertools.count()

    def waits() -> bool:
        sandbox.deliver(_letter(next(sent)))
        return name in producer.get("/ready")[1]

    until(waits, "the producer says that it waits for room")
    with own_redis.client() as client:
        held = client.xlen(Keys().stream)
        assert value <= (held if name == "STREAM_MAX_DEPTH" else int(client.get(Keys().volume)))
        loop = "email_ingestion_loop_last_iteration_timestamp_seconds"
        before = producer.metric(loop)
        until(lambda: producer.metric(loop) > before + 3, "the producer has had time to make a mistake")
        assert client.xlen(Keys().stream) == held
    assert _logins(sandbox) == logins
    here.worker()
    count = next(sent)
    until(lambda: len(here.rows("SELECT 1 FROM emails")) == count, "everything is delivered")
    assert _logins(sandbox) == logins
