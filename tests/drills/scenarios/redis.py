"""Faults of Redis."""

from __future__ import annotations

from email_ingestion.fleet.gameday_faults import FOREIGN_ENTRIES, append_foreign_entries
from email_ingestion.stream import open_link
from tests.drills.scenarios.base import Scenario
from tests.drills.world import KEYS, World


class RedisDown(Scenario):
    """The server dies and stays away."""

    name = "redis-down"
    fires = frozenset({"RedisDown"})

    def inject(self, world: World) -> None:
        world.redis.kill()


class LettersLost(Scenario):
    """There is a backup of last night; then somebody typed FLUSHALL, and the dead letters are nowhere else."""

    name = "letters-lost"

    def prepare(self, world: World) -> None:
        append_foreign_entries(open_link(f"redis://127.0.0.1:{world.redis.port}/0", "drill"), FOREIGN_ENTRIES)

    def inject(self, world: World) -> None:
        done = world.shell("python scripts/backup.py", seconds=90)
        assert done.rc == 0, done.output
        with world.redis.client() as client:
            client.flushall()

    def finish(self, world: World) -> None:
        with world.redis.client() as client:
            assert client.xlen(KEYS.dlq) == FOREIGN_ENTRIES
