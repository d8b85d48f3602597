"""Faults of what is around our processes: rights, limits, helpers and folders. None is a message's."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import redis

from bench.crash_matrix.world import KEYS, World

BLOWS = 3
COMMANDS = ("xack", "xdel", "xclaim", "xadd", "xpending", "hset", "decrby", "evalsha")


def commands_refused(world: World, rng: Random) -> None:
    """The user of the processes may not run one of the commands that they need, or two."""
    with world.redis.client() as client:
        for _ in range(2):
            world.more()
            world.instant(rng)
            taken = rng.sample(COMMANDS, rng.randint(1, 2))
            client.execute_command("ACL", "SETUSER", "default", *(f"-{command}" for command in taken))
            world.more()
            time.sleep(rng.uniform(1, 12 if world.long else 4))
            client.execute_command("ACL", "SETUSER", "default", "+@all")


def foreign_key(world: World, rng: Random) -> None:
    """Another program puts a list under one of our names."""
    with world.redis.client() as client:
        world.more()
        world.instant(rng)
        name = rng.choice(["volume", "priority", "dlq"])
        key = f"{{email_ingestion}}:{name}"
        client.delete(key)  # nothing is lost by it: there are no dead letters, and the others are counts
        client.rpush(key, "theirs")
        world.more()
        time.sleep(rng.uniform(1, 4))
        client.delete(key)


def queue_trimmed(world: World, rng: Random) -> None:
    """A person, or Redis under an eviction policy, takes mail away that no worker has had yet, and what counts it."""
    for _ in range(2):
        if with_worker := rng.choice([True, False]):
            world.instant(rng)
        else:
            world.kill("worker")
        world.more()
        time.sleep(rng.uniform(0 if with_worker else 1, 2))
        with world.redis.client() as client:
            QUEUE_LOSSES[rng.choice(sorted(QUEUE_LOSSES))](client)
        if not with_worker:
            world.start("worker")
            world.up("worker")


def _all_but_the_cursors(client: redis.Redis) -> None:
    for key in client.scan_iter():
        if b":cursor:" not in key:
            client.delete(key)


def _swap(client: redis.Redis) -> None:
    client.execute_command("SWAPDB", 0, 1)
    client.execute_command("FLUSHDB")


def _rename(client: redis.Redis) -> None:
    for key in (KEYS.stream, KEYS.volume):
        with suppress(redis.ResponseError):  # there is none
            client.rename(key, f"{key}-elsewhere")


QUEUE_LOSSES: dict[str, Callable[[redis.Redis], object]] = {
    "deleted": lambda client: client.delete(KEYS.stream),
    "deleted with its count": lambda client: client.delete(KEYS.stream, KEYS.volume),
    "all but the cursors": _all_but_the_cursors,
    "renamed": _rename,
    "swapped": _swap,
    "trimmed": lambda client: client.xtrim(KEYS.stream, maxlen=3, approximate=False),
}


def parser_killed(world: World, rng: Random) -> None:
    """SIGKILL for the worker's parser, as the kernel does when memory is short, again and again."""
    for _ in range(BLOWS * 3):
        world.more()
        time.sleep(rng.uniform(0, world.span / 2))
        for pid in _children(world, "parsing.parser_process"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def no_descriptors(world: World, rng: Random) -> None:
    """A process has no file descriptor to spare; of the worker the parser is gone as well."""
    for _ in range(2):
        world.more()
        world.instant(rng)
        pid = world.running[rng.choice(["worker", "worker", "producer"])].process.pid
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")), limits[1]))
        for child in _children(world, "parsing.parser_process"):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        world.more()
        time.sleep(rng.uniform(1, 12 if world.long else 4))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def blobs_away(world: World, rng: Random) -> None:
    """The folder of the blobs is not there, or empty: its disk is not mounted."""
    blobs, aside = world.data / "blobs", world.data / "blobs-aside"
    for _ in range(2):
        world.more()
        world.instant(rng)
        blobs.rename(aside)
        if rng.choice([True, False]):
            blobs.mkdir()
        world.more()
        time.sleep(rng.uniform(1, 12 if world.long else 4))
        if blobs.is_dir():  # what was written meanwhile comes to the others, as an operator would do it
            for path in sorted(blobs.rglob("*")):
                if path.is_file() and not path.name.startswith("."):
                    target = aside / path.relative_to(blobs)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    path.replace(target)
            blobs.rename(world.data / f"blobs-{time.monotonic_ns()}")
        aside.rename(blobs)


def _children(world: World, module: str) -> list[int]:
    """Return the processes of this module that a worker has started."""
    parents = {running.process.pid for name, running in world.running.items() if name.startswith("worker")}
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent in parents and module in (folder / "cmdline").read_text():
                    found.append(int(folder.name))
    return found


def memory_short(world: World, rng: Random) -> None:
    """A process of ours, or the worker's parser, gets no more memory than it has, or little more."""
    for _ in range(2):
        world.more()
        world.instant(rng)
        pids = [
            world.running[rng.choice(["producer", "worker"])].process.pid,
            *_children(world, "parsing.parser_process"),
        ]
        pid = rng.choice(pids)
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        limits = resource.prlimit(pid, resource.RLIMIT_AS)
        most = pages * resource.getpagesize() + rng.choice([0, 1, 8]) * 1024 * 1024
        resource.prlimit(pid, resource.RLIMIT_AS, (most, limits[1]))
        world.more()
        time.sleep(rng.uniform(1, 12 if world.long else 4))
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_AS, limits)
