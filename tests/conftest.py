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

# Many tests start processes of ours: where bytecode may not be kept, each would compile all it imports, for seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# A shell lets what it starts in the background (`nohup … &`) ignore Ctrl-C, and the children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collectstart() -> None:
    gc.disable()  # nothing of what is imported and collected is garbage


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
