"""A scenario: the fault a procedure is for. To add one, subclass `Scenario` in a module of this folder; that is all.

    class RedisDown(Scenario):
        name = "redis-down"                      # what `<!-- drill: scenario=… -->` says
        fires = frozenset({"RedisDown"})         # the alerts of the section that this fault fires (--soak)

        def inject(self, world: World) -> None:
            world.redis.kill()

What the runbook's commands repair needs no code: the drill runs them (`systemctl restart redis` reaches the drill's
Redis). `mend` is what an engineer does that no command of the page does, such as deploying a fix; `heal` ends a fault
with `heals=itself`. `python -m tests.drills incident_response#21-redis-down` runs one drill and shows why it failed.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from tests.drills.world import World

# A restart of seconds is one of minutes where rules run twenty times as fast.
RESTARTED = frozenset({"AllDown", "ProducerDown", "WorkerDown", "NoWorkers", "FreshnessBudgetBurn"})


class Scenario:
    """A healthy stack, and what breaks it. The defaults suit most."""

    name: ClassVar[str] = ""
    fires: ClassVar[frozenset[str]] = frozenset()
    # Further alerts that may ring, because time runs faster for them than for us: say why.
    tolerates: ClassVar[frozenset[str]] = frozenset()
    settings: ClassVar[dict[str, object]] = {}  # on top of the world's, for `.env`
    crew: ClassVar[tuple[str, ...]] = ("producer", "worker", "worker-2")
    first_mail: ClassVar[int] = 20  # messages that are there before anything starts
    pause: ClassVar[float] = 0.2  # seconds between two messages that arrive meanwhile
    hold: ClassVar[float] = 2.0  # seconds a fault that needs a hand is left alone, to see that it does
    times: ClassVar[float] = 20.0  # how much faster Prometheus' rules run, with --soak

    def python_path(self, folder: Path) -> str:
        """A folder whose `sitecustomize.py` every Python of the drill runs first: bugs live there. Empty: none."""
        del folder
        return ""

    def prepare(self, world: World) -> None:
        """Before any process of ours starts: further servers, further settings (`world.write_settings`)."""

    def inject(self, world: World) -> None:
        """Break it. Mail goes on arriving."""

    def mend(self, world: World) -> None:
        """Before the mitigation: what a person does outside the page's commands."""

    def heal(self, world: World) -> None:
        """With heals=itself: the fault ends."""

    def finish(self, world: World) -> None:
        """After recovery, with the load stopped and the law checked: whatever else must hold. Use `assert`."""


class Healthy(Scenario):
    """For sections whose commands only look."""

    name = "healthy"
