"""Above its limits the stream is left alone: Gmail is the buffer, the connection stays, and nothing is trimmed."""

from __future__ import annotations

import base64
import json
import random
import urllib.request

import pytest

from email_ingestion.sandbox import RunningSandbox
from email_ingestion.stream import Keys
from tests.servers.processes import Place, until
from tests.servers.redis import RedisServer

FIRST, MORE = 200, 20
MIB = 1024 * 1024


def _logins(sandbox: RunningSandbox) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{sandbox.control_port}/stats", timeout=10) as answer:
        return json.load(answer)["connections"]["total"]


def _deliver(sandbox: RunningSandbox, numbers: range) -> None:
    for number in numbers:
        noise = base64.encodebytes(random.Random(number).randbytes(10_000))
        sandbox.deliver(b"Subject: letter %d\r\n\r\n%b" % (number, noise))


@pytest.mark.parametrize(("name", "value"), [("STREAM_MAX_DEPTH", 50), ("STREAM_MAX_BYTES", MIB)])
def test_the_producer_waits_above_the_limit_and_goes_on_when_there_is_room(
    here: Place, sandbox: RunningSandbox, own_redis: RedisServer, name: str, value: int
):
    here.set(**{name: value})
    producer = here.producer()
    until(lambda: producer.status()["accounts"][0]["watch"] == "idle", "the producer waits for mail")
    logins = _logins(sandbox)
    _deliver(sandbox, range(FIRST))
    with own_redis.client() as client:
        until(lambda: client.xlen(Keys().stream) == FIRST, "the stream is over its limit")
        assert value < (FIRST if name == "STREAM_MAX_DEPTH" else int(client.get(Keys().volume)))
        _deliver(sandbox, range(FIRST, FIRST + MORE))
        until(lambda: name in producer.get("/ready")[1], "the producer says that it waits for room")
        loop = "email_ingestion_loop_last_iteration_timestamp_seconds"
        before = producer.metric(loop)
        until(lambda: producer.metric(loop) > before + 3, "the producer has had time to make a mistake")
        assert client.xlen(Keys().stream) == FIRST
        assert _logins(sandbox) == logins
        here.worker()
        until(lambda: len(here.rows("SELECT 1 FROM emails")) == FIRST + MORE, "everything is delivered")
        assert _logins(sandbox) == logins
