"""A healthy stack on what we ship for others to install."""

from __future__ import annotations

from typing import ClassVar

from tests.drills.scenarios.base import Healthy
from tests.drills.world import World


class HealthyAsShipped(Healthy):
    """Redis has the users of config/redis.conf: the service's own, and a default one that may hardly look."""

    name = "healthy-as-shipped"
    settings: ClassVar[dict[str, object]] = {"REDIS_USERNAME": "email_ingestion", "REDIS_PASSWORD": "of-the-service"}

    def prepare(self, world: World) -> None:
        world.redis.take_users("of-the-service")
