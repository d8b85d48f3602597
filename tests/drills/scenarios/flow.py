"""Faults of the way from the stream into the database: too slow, stuck, or walked twice."""

from __future__ import annotations

import threading
from pathlib import Path

from tests.drills.scenarios.base import RESTARTED, Scenario
from tests.drills.world import KEYS, World
from tests.servers.poison import poisoned_python
from tests.servers.processes import until

SLOW = """\
import time
import email_ingestion.sinks.database as database

swift = database.DatabaseSink.deliver

def deliver(self, batch):
    time.sleep(sum({seconds} for message in batch if b"X-Slow: yes" in message.raw))
    return swift(self, batch)

database.DatabaseSink.deliver = deliver
"""

STUCK = """\
import time
import email_ingestion.parsing as parsing

harmless = parsing.parse

def parse(envelope, raw):
    if b"X-Stuck: yes" in raw:
        time.sleep(3600)
    return harmless(envelope, raw)

parsing.parse = parse
"""


class _Slow(Scenario):
    """From now on each message takes the worker so long."""

    seconds = 0.3

    def python_path(self, folder: Path) -> str:
        self._bug = folder
        return poisoned_python(folder, SLOW.format(seconds=self.seconds))

    def inject(self, world: World) -> None:
        world.load.headers = "X-Slow: yes\r\n"


class Backlog(_Slow):
    """One worker, and more mail than it can deliver; three can."""

    name = "backlog"
    fires = frozenset({"QueueBacklogWarning"})
    settings = {"WORKER_BATCH_SIZE": 5}  # noqa: RUF012 - the base class declares it
    crew = ("producer", "worker")


class SlowProcessing(_Slow):
    """A new version takes seconds for each message, until somebody goes back."""

    name = "slow-processing"
    fires = frozenset({"SlowProcessing"})
    tolerates = RESTARTED | {"FreshnessBudgetBurn", "QueueBacklogWarning"}  # a mail of six seconds is an old one here
    settings = {"WORKER_BATCH_SIZE": 1}  # noqa: RUF012 - the base class declares it
    seconds = 6.0
    pause = 2.0

    def mend(self, world: World) -> None:
        del world
        (self._bug / "sitecustomize.py").write_text("")


class StuckMessage(Scenario):
    """One message over which the parser sleeps for an hour, with a time limit that is longer."""

    name = "stuck-message"
    fires = frozenset({"PendingStuck"})
    tolerates = frozenset({"FreshnessBudgetBurn"})  # the stuck message is late as well
    settings = {"WORKER_HANDLE_TIMEOUT_SECONDS": 7200}  # noqa: RUF012 - the base class declares it

    def python_path(self, folder: Path) -> str:
        return poisoned_python(folder, STUCK)

    def inject(self, world: World) -> None:
        world.load.stop()
        until(world.settled, "nothing else is under way")
        world.load.headers = "X-Stuck: yes\r\n"
        world.load.deliver()
        world.load.headers = ""
        until(lambda: (world.metric("email_ingestion_stream_pending") or 0) > 0, "a worker has it")
        world.load.start()


class Duplicates(Scenario):
    """A program of somebody else puts every message into the stream once more."""

    name = "duplicates"
    fires = frozenset({"DuplicatesRising"})

    def inject(self, world: World) -> None:
        self._over = threading.Event()
        self._stranger = threading.Thread(target=self._copy, args=[world], name="stranger", daemon=True)
        self._stranger.start()

    def heal(self, world: World) -> None:
        del world
        self._over.set()
        self._stranger.join()

    def _copy(self, world: World) -> None:
        own: set[bytes] = set()
        last: bytes | str = "$"
        with world.redis.client() as client:
            client.client_setname("stranger")
            while not self._over.is_set():
                for _, entries in client.xread({KEYS.stream: last}, block=200) or ():
                    own |= {client.xadd(KEYS.stream, fields) for entry, fields in entries if entry not in own}
                    last = entries[-1][0]
