"""A producer and a worker at work on a mailbox of the sandbox, for the tests of commands that act on them."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gmail_sandbox import RunningSandbox, SandboxSettings, running_sandbox
from tests.servers.processes import Place, Running, gmail_settings, place, until
from tests.servers.redis import RedisServer, running_redis


@dataclass
class Pair:
    here: Place
    redis: RedisServer
    sandbox: RunningSandbox
    producer: Running
    worker: Running

    def settled(self) -> None:
        for process in (self.producer, self.worker):
            until(lambda process=process: json.loads(process.get("/ready")[1])["status"] == "ready", "all is well")


@contextmanager
def running_pair(kind: type[Pair], folder: Path, **settings):
    """One of the `kind` a test needs, when it is ready."""
    with (
        running_sandbox(SandboxSettings()) as sandbox,
        running_redis(folder / "redis") as redis,
        place(folder / "here", redis.url, **gmail_settings(sandbox, folder / "here")) as here,
    ):
        here.set(IMAP_POLL_SECONDS=1, **settings)
        made = kind(here, redis, sandbox, here.producer(), here.worker())
        made.settled()
        yield made
