"""Faults of the machine: no inode left, no room for Redis' file, a folder that became read-only, a clock days off."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

from bench.crash_matrix.clock import SettableClock
from bench.crash_matrix.faults import blows, fill_up
from bench.crash_matrix.world import World

MINUTE = 60.0
DAY = 86_400
ROOM = "64m"  # of Redis' folder
INODES = 20_000
FOLDERS = ("data", "out", "logs", "pids")


def redis_stopped(world: World, rng: Random) -> None:
    """Redis is stopped for a minute: longer than any of our deadlines."""
    for _ in blows(world, rng, 1):
        world.redis.freeze()
        world.more()
        time.sleep(MINUTE)
        world.redis.thaw()


def clock_jump(world: World, rng: Random) -> None:
    """The wall clock of Redis and our processes is two days off, forward and back, and right again."""
    clock = SettableClock(world.here.folder)
    directions = [-1, 1]
    rng.shuffle(directions)
    for direction in directions:
        for seconds in (direction * 2 * DAY, 0):
            world.more()
            world.instant(rng)
            clock.set(seconds)
            world.more()
            time.sleep(rng.uniform(2, 4))


def inodes_gone(world: World, rng: Random) -> None:
    """No file can be made in one of our folders, though there is room."""
    for _ in blows(world, rng, 2):
        folder = world.here.folder / rng.choice(FOLDERS)
        made = list(_use_up(folder))
        world.more()
        time.sleep(rng.uniform(1, 12 if world.long else 4))
        for path in made:
            path.unlink()


def aof_full(world: World, rng: Random) -> None:
    """The file system of Redis' append-only file is full: it refuses every write with MISCONF."""
    for _ in blows(world, rng, 2):
        fill_up(world.redis.directory, 0)
        world.more()
        time.sleep(rng.uniform(1, 12 if world.long else 5))
        _remount(world.redis.directory, f"size={ROOM}")


def folder_read_only(world: World, rng: Random) -> None:
    """The folder of the blobs, or of what a sink writes, becomes read-only in flight."""
    for _ in blows(world, rng, 2):
        folder = world.here.folder / rng.choice(["data", "out"])
        while not _mount("-o", "remount,ro", str(folder)):  # a file is open for writing at the moment
            time.sleep(0.01)
        world.more()
        time.sleep(rng.uniform(1, 12 if world.long else 5))
        _remount(folder, "rw")


@contextmanager
def folders_of_their_own(world: World) -> Iterator[None]:
    """Lay our folders on file systems of their own, and have every message written into files."""
    world.here.set(SINKS="files:out", BLOB_THRESHOLD_BYTES=1)
    with _mounted(*(world.here.folder / name for name in FOLDERS), options=f"size=1g,nr_inodes={INODES}"):
        yield
        world.muster(())


@contextmanager
def small_redis(world: World) -> Iterator[None]:
    """Lay the data of Redis on a file system of its own."""
    world.redis.kill()
    with _mounted(world.redis.directory, options=f"size={ROOM}"):
        world.redis.start()
        yield
        world.muster(())
        world.redis.kill()
    world.redis.start()


def mount_refused() -> str:
    """Say why nothing can be mounted here; empty where it can."""
    tried = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False)  # noqa: S607
    if tried.returncode:
        return "mounting is not allowed"
    subprocess.run(["umount", "/mnt"], check=True)  # noqa: S607
    return ""


def _use_up(folder: Path) -> Iterator[Path]:
    with suppress(OSError):
        for number in range(INODES + 1):
            path = folder / f".used-up-{number}"
            path.touch()
            yield path


@contextmanager
def _mounted(*folders: Path, options: str) -> Iterator[None]:
    mounted = []
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            if not _mount("-t", "tmpfs", "-o", options, "tmpfs", str(folder)):
                raise OSError(f"{folder} cannot be a file system of its own")
            mounted.append(folder)
        yield
    finally:
        for folder in mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S607


def _remount(folder: Path, options: str) -> None:
    if not _mount("-o", f"remount,{options}", str(folder)):
        raise OSError(f"{folder} cannot be mounted with {options}")


def _mount(*words: str) -> bool:
    return subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0  # noqa: S607
