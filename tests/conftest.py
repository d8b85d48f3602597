"""Servers that all rooms' tests share."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.redis import RedisServer, running_redis

TESTS = Path(__file__).parent
SLOW, MIDDLING = {"acceptance", "drills"}, {"integration"}

# Many tests start processes of ours: where bytecode may not be kept, each would compile all it imports, for seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# A shell lets what it starts in the background (`nohup … &`) ignore Ctrl-C, and the children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collectstart() -> None:
    gc.disable()  # nothing of what is imported and collected is garbage


@pytest.hookimpl(trylast=True)  # when it is known which of them run
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let each of several processes begin with its share of the slow tests and end with quick ones.

    One that is done takes from the end of another's share, but never the last two: they must not be slow.
    """
    processes = getattr(config, "workerinput", {}).get("workercount", 0)
    if not processes:
        return
    slow, middling = [each for each in items if _is_in(each, SLOW)], [each for each in items if _is_in(each, MIDDLING)]
    quick = [each for each in items if not _is_in(each, SLOW | MIDDLING)]
    left = len(items)
    items.clear()
    for still in range(processes, 0, -1):
        size = left // still  # as pytest-xdist cuts the list
        left -= size
        share = [*_take(slow, len(slow) // still), *_take(middling, len(middling) // still)]
        items += [*share, *_take(quick, size - len(share) if still > 1 else len(quick))]


def _is_in(item: pytest.Item, rooms: set[str]) -> bool:
    return any(TESTS / room in item.path.parents for room in rooms)


def _take(tests: list[pytest.Item], count: int) -> list[pytest.Item]:
    taken = tests[: max(count, 0)]
    del tests[: len(taken)]
    return taken


def pytest_collection_finish() -> None:
    """Let no collection visit it either: each would look at a million objects that live to the end."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis"), appendonly=False) as server:
        yield server


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """A running, empty Redis that a test must leave running."""
    with shared_redis.client() as client:
        client.flushall()
    return shared_redis


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis with AOF that a test may kill."""
    with running_redis(tmp_path / "redis") as server:
        yield server
