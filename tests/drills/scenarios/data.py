"""Faults of what is kept: the mailbox's numbers, Redis' keys, the database, a further sink."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack, closing
from typing import ClassVar
from urllib.parse import urlsplit

from tests.drills.scenarios.base import Scenario
from tests.drills.world import World
from tests.servers.processes import until
from tests.servers.webhook import SECRET, receiving


class Uidvalidity(Scenario):
    """The mailbox was recreated: new UIDVALIDITY, new UIDs."""

    name = "uidvalidity"

    def inject(self, world: World) -> None:
        world.sandbox.arm_fault("uidvalidity_reset")
        world.sandbox.arm_fault("session_expiry")


class RedisDataLoss(Scenario):
    """Somebody typed FLUSHALL."""

    name = "redis-data-loss"

    def inject(self, world: World) -> None:
        with world.redis.client() as client:
            client.flushall()


class DatabaseLocked(Scenario):
    """A shell was left open in the middle of a transaction."""

    name = "database-locked"
    fires = frozenset({"SinkDown"})

    def inject(self, world: World) -> None:
        path = world.folder / "data" / "email_ingestion.db"
        self._shell = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        self._shell.execute("BEGIN IMMEDIATE")

    def heal(self, world: World) -> None:
        del world
        self._shell.execute("ROLLBACK")
        self._shell.close()


class ConsumerIncomplete(Scenario):
    """Somebody tidied up among the files of a sink."""

    name = "consumer-incomplete"
    fires = frozenset({"ConsumerIncomplete"})
    settings: ClassVar[dict[str, object]] = {"SINKS": "database,files", "RECONCILE_SINKS_SECONDS": 5}
    LOST = 3

    def inject(self, world: World) -> None:
        kept = world.folder / "data" / "files"
        mails = until(lambda: len(found := sorted(kept.rglob("*.eml"))) >= self.LOST and found, "the sink has mail")
        lost = [path.stem.replace("-gm-", ":gm:") for path in mails[: self.LOST]]
        with closing(sqlite3.connect(world.folder / "data" / "email_ingestion.db", timeout=30)) as ledger, ledger:
            for email_id in lost:  # they came an hour ago, not in this minute
                ledger.execute(
                    "UPDATE deliveries SET changed_at = '2026-01-01T00:00:00+00:00' WHERE email_id = ?", (email_id,)
                )
        for path in mails[: self.LOST]:
            path.unlink()

    def finish(self, world: World) -> None:
        kept = world.folder / "data" / "files"
        until(lambda: len(list(kept.rglob("*.eml"))) >= len(world.load.delivered), "the sink has every message")


class WebhookDown(Scenario):
    """Nobody listens at the webhook's address any more."""

    name = "webhook-down"
    fires = frozenset({"SinkDown"})

    def prepare(self, world: World) -> None:
        self._server = ExitStack()
        self._receiver = self._server.enter_context(receiving())
        world.write_settings(SINKS="database,webhook", WEBHOOK_URL=self._receiver.url, WEBHOOK_SECRET=SECRET)

    def inject(self, world: World) -> None:
        del world
        self._receiver.fail(503, connection="close")  # connections that are open already end, too
        self._server.close()

    def heal(self, world: World) -> None:
        del world
        self._receiver.work()
        self._server.enter_context(receiving(self._receiver, urlsplit(self._receiver.url).port or 0))

    def finish(self, world: World) -> None:
        # It stays open to the end of this process: with it gone the alerts would go on.
        until(lambda: self._receiver.taken.keys() >= world.load.delivered.keys(), "it got every message")
        assert self._receiver.taken.keys() == world.load.delivered.keys()
