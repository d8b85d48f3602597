"""The fixture of these tests: the real producer and worker on scripted IMAP servers."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.servers.odd_stack import RunOdd, running_stack
from tests.servers.redis import RedisServer


@pytest.fixture
def odd(tmp_path: Path, redis_server: RedisServer) -> RunOdd:
    """Call it with an `OddImapServer` (and settings, and `others`) in a `with` statement."""
    return partial(running_stack, tmp_path / "here", redis_server.url)
