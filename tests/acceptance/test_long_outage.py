# ruff: noqa: T201 - the numbers are what such a run is for
"""Redis is away for a minute while mail goes on arriving: nobody restarts anything, and it goes on at once."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from typing import Self

import pytest

from gmail_sandbox import RunningSandbox
from tests.servers.processes import Place, until
from tests.servers.redis import RedisServer

BEFORE = 50
PACE_SECONDS = 0.1  # between two letters
SLACK_SECONDS = 2.0


class Load:
    """Letters that keep arriving, whatever the receiver does."""

    def __init__(self, sandbox: RunningSandbox) -> None:
        self._sandbox = sandbox
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._deliver)
        self.sent = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _deliver(self) -> None:
        while not self._done.wait(PACE_SECONDS):
            number = self.sent
            self._sandbox.deliver(b"Subject: %d\r\nMessage-ID: <%d@example.org>\r\n\r\nhello\r\n" % (number, number))
            self.sent += 1


@pytest.mark.soak
@pytest.mark.parametrize(("outage", "recovery_timeout"), [(60, 30), (65, 30), (60, 5)])
def test_a_minute_without_redis_under_load(
    here: Place, sandbox: RunningSandbox, own_redis: RedisServer, outage: int, recovery_timeout: int
):
    """The outages end soon after a trial or soon before one: the wait is short in one and long in the other."""
    here.set(CB_RECOVERY_TIMEOUT=recovery_timeout)
    processes = [here.producer(), here.worker()]
    pids = [process.process.pid for process in processes]
    with Load(sandbox) as load:
        until(lambda: len(here.rows()) >= BEFORE, "mail flows")
        own_redis.kill()
        time.sleep(outage)
        own_redis.start()
        back, before = datetime.now(UTC), len(here.rows())
        until(lambda: len(here.rows()) > before, "the first message after it")
        waited = (datetime.now(UTC) - back).total_seconds()
    until(lambda: len(here.rows()) >= load.sent, "all of it")
    print(
        f"\nRedis away for {outage} s, CB_RECOVERY_TIMEOUT={recovery_timeout}: first message {waited:.1f} s after its"
    )
    print(f"return; {load.sent} sent, {len(here.rows())} delivered")
    assert sorted(int(subject) for (subject,) in here.rows("SELECT subject FROM emails")) == list(range(load.sent))
    assert waited <= recovery_timeout + SLACK_SECONDS
    assert all(process.alive for process in processes)
    assert [process.status()["pid"] for process in processes] == pids
