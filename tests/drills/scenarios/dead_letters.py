"""Dead letters of two kinds: those of a bug, which a fix brings back to life, and what never was mail of ours."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import zstandard

from tests.drills.scenarios.base import Scenario
from tests.drills.world import KEYS, World
from tests.servers.poison import poisoned_python

BUG = """\
import pathlib
import email_ingestion.sinks.database as database

harmless = database.DatabaseSink.deliver

def deliver(self, batch):
    if any(b"X-Customer:" in message.raw for message in batch) and not pathlib.Path("data/mended").exists():
        raise LookupError("no customer of that number")
    return harmless(self, batch)

database.DatabaseSink.deliver = deliver
"""
FOREIGN = 3


class DeadLetters(Scenario):
    """A version with a bug meets a new kind of mail, and another program writes into our stream."""

    name = "dead-letters"
    settings: ClassVar[dict[str, object]] = {"WORKER_MAX_RETRIES": 1}
    pause: ClassVar[float] = 0.5

    def python_path(self, folder: Path) -> str:
        return poisoned_python(folder, BUG)

    def inject(self, world: World) -> None:
        with world.redis.client() as client:
            for _ in range(FOREIGN):
                client.xadd(KEYS.stream, {"raw": zstandard.compress(b"hello")})
        world.load.headers = "X-Customer: 7\r\n"

    def mend(self, world: World) -> None:
        (world.folder / "data" / "mended").touch()
