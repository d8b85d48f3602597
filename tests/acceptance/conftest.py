"""A place of its own for each test: a Redis with AOF, a Gmail sandbox, and processes that use them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gmail_sandbox import RunningSandbox, SandboxSettings, running_sandbox
from tests.servers.processes import Place, gmail_settings, place
from tests.servers.redis import RedisServer


@pytest.fixture
def sandbox() -> Iterator[RunningSandbox]:
    with running_sandbox(SandboxSettings()) as running:
        yield running


@pytest.fixture
def here(tmp_path: Path, own_redis: RedisServer, sandbox: RunningSandbox) -> Iterator[Place]:
    """Where producer and workers find the empty sandbox and their own Redis."""
    with place(tmp_path / "here", own_redis.url, **gmail_settings(sandbox, tmp_path / "here")) as made:
        yield made
