"""Faults of the workers and of the mail they handle."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import ClassVar

from email_ingestion.stream import GROUP
from tests.drills.scenarios.base import Scenario
from tests.drills.world import KEYS, World
from tests.servers.poison import poisoned_python
from tests.servers.processes import until

BUG = """\
import email_ingestion.sinks.database as database

harmless = database.DatabaseSink.deliver

def deliver(self, batch):
    if any(b"X-Bug: yes" in message.raw for message in batch):
        raise KeyError("a field that this mail does not have")
    return harmless(self, batch)

database.DatabaseSink.deliver = deliver
"""


class DlqGrowing(Scenario):
    """A bug in the processor: from now on no new mail can be handled, until somebody deploys the mend."""

    name = "dlq-growing"
    fires = frozenset({"DlqGrowing"})
    # The restart of everything lasts for minutes by the rules' clock.
    tolerates = frozenset({"AllDown", "ProducerDown", "NoWorkers", "WorkerDown", "FreshnessBudgetBurn"})
    settings: ClassVar[dict[str, object]] = {"WORKER_MAX_RETRIES": 1}
    crew = ("producer", "worker")  # the restart makes them two
    pause = 0.4

    def python_path(self, folder: Path) -> str:
        self._bug = folder
        return poisoned_python(folder, BUG)

    def inject(self, world: World) -> None:
        world.load.headers = "X-Bug: yes\r\n"

    def mend(self, world: World) -> None:
        (self._bug / "sitecustomize.py").write_text("")


class WorkerCrash(Scenario):
    """The kernel kills the only worker while it has mail in hand."""

    name = "worker-crash"
    fires = frozenset({"NoWorkers"})
    crew = ("producer", "worker")
    times = 4.0  # a dead worker is missed after 15 s, whatever the rules' clock

    def inject(self, world: World) -> None:
        with closing(sqlite3.connect(world.folder / "data" / "email_ingestion.db", isolation_level=None)) as foreign:
            foreign.execute("BEGIN IMMEDIATE")  # so that it cannot finish what it has in hand
            until(lambda: self._pending(world), "the worker has mail in hand")
            world.kill("worker")
            foreign.execute("ROLLBACK")

    def _pending(self, world: World) -> int:
        with world.redis.client() as client:
            return client.xpending(KEYS.stream, GROUP)["pending"]
