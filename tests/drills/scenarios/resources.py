"""Faults of what everything needs: memory, disk and the time."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress

from bench.crash_matrix.clock import SettableClock
from tests.drills.scenarios.base import RESTARTED, Scenario
from tests.drills.world import World

DISK_BYTES = 48 * 1024 * 1024


class Memory(Scenario):
    """Redis has used all of its memory and refuses writes."""

    name = "memory"
    fires = frozenset({"RedisMemoryHigh", "RedisDown"})  # it grows first, then no write goes through
    tolerates = RESTARTED | {"Paused"}  # by the mitigation itself

    def inject(self, world: World) -> None:
        with world.redis.client() as client:
            client.config_set("maxmemory", client.info("memory")["used_memory"] * 9 // 10)


class DiskFull(Scenario):
    """Old logs have taken the last byte of the disk that data and logs share."""

    name = "disk-full"
    fires = frozenset({"DiskFull"})
    tolerates = frozenset({"SinkDown", "CircuitBreakerOpen", "FreshnessBudgetBurn"})  # the database is on that disk

    def prepare(self, world: World) -> None:
        assert world.addresses.literal, "a disk of its own needs a mount namespace, which this machine does not permit"
        disk = world.folder / "disk"
        disk.mkdir()
        _mount("-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk))
        for name in ("data", "logs"):
            shutil.copytree(world.folder / name, disk / name)
            _mount("--bind", str(disk / name), str(world.folder / name))

    def inject(self, world: World) -> None:
        with suppress(OSError), (world.folder / "logs" / "producer.log.1").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))


class ClockOffset(Scenario):
    """The clock of the machine that our processes run on is two minutes ahead."""

    name = "clock-offset"
    fires = frozenset({"ClockOffset"})
    clock: SettableClock

    def prepare(self, world: World) -> None:
        self.clock = SettableClock(world.folder.parent)
        world.environment |= self.clock.environment

    def inject(self, world: World) -> None:
        self.clock.set(120)

    def mend(self, world: World) -> None:
        self.clock.set(0)


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)
