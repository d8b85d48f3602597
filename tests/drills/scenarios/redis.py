"""Faults of Redis."""

from __future__ import annotations

from tests.drills.scenarios.base import Scenario
from tests.drills.world import World


class RedisDown(Scenario):
    """The server dies and stays away."""

    name = "redis-down"
    fires = frozenset({"RedisDown"})

    def inject(self, world: World) -> None:
        world.redis.kill()
