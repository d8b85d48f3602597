"""A thief: somebody who found the ops token, after some guessing, and uses it; or who is still guessing."""

from __future__ import annotations

import json
import urllib.request
from contextlib import suppress
from typing import ClassVar
from urllib.error import HTTPError

from tests.drills.scenarios.base import Scenario
from tests.drills.world import World


class StolenOpsToken(Scenario):
    """Redis has the user of config/redis.conf; the thief pauses the producer for an hour."""

    name = "stolen-ops-token"
    settings: ClassVar[dict[str, object]] = {"REDIS_USERNAME": "email_ingestion", "REDIS_PASSWORD": "old-secret"}

    def prepare(self, world: World) -> None:
        world.redis.take_users("old-secret")

    def inject(self, world: World) -> None:
        token = (world.folder / "data" / "ops-token").read_text().strip()
        for guess in ("x" * 20, "y" * 20, token):
            with suppress(HTTPError):
                _pause(world, guess)

    def finish(self, world: World) -> None:
        assert "old-secret" not in world.redis.config.read_text()
        assert "old-secret" not in (world.folder / ".env").read_text()
        assert not (world.folder / "data" / "token.json").read_text().lstrip().startswith("{"), "it is not encrypted"


class SecurityIncident(Scenario):
    """Somebody on this machine guesses at the ops token."""

    name = "security-incident"

    def inject(self, world: World) -> None:
        for guess in ("x" * 20, "y" * 20):
            with suppress(HTTPError):
                _pause(world, guess)


def _pause(world: World, token: str) -> None:
    body = json.dumps({"ttl_seconds": 3600}).encode()
    headers = {"X-Admin-Token": token, "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{world.url()}/admin/pause", body, headers), timeout=5):
        pass
