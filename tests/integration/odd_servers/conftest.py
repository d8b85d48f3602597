"""The fixture of these tests: a watcher on a scripted IMAP server, in this very process."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from email_ingestion.producer import AccountBackoff, account_backoff, watch
from tests.servers.odd_imap import PASSWORD, USER, OddImapServer
from tests.servers.redis import RedisServer
from tests.servers.watching import Watched

RunWatched = Callable[..., "OddWatched"]


class OddWatched(Watched):
    """The watcher of one account, and what of its mail is in the stream."""

    def in_stream(self) -> list[str]:
        """The SHA-256 of every message in the stream, each as often as it is there."""
        with self.redis.client() as client:
            return sorted(fields[b"sha256"].decode() for _, fields in client.xrange(self.keys.stream))

    def holds(self, *messages: bytes) -> None:
        """Wait until the stream holds these messages, byte by byte, and see that nothing else is there."""
        wanted = {hashlib.sha256(each).hexdigest() for each in messages}
        self.until(lambda: wanted <= set(self.in_stream()), f"{len(wanted)} messages in the stream")
        assert self.in_stream() == sorted(wanted)


@pytest.fixture
def watched(redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunWatched]:
    """Call it with an `OddImapServer` and settings: both run until the test ends."""
    for name, seconds in {"PROBED": 0.1, "SOON": 0.1, "LOGIN": 0.3, "OPERATOR": 0.1, "OPERATOR_CAP": 0.3}.items():
        monkeypatch.setattr(account_backoff, f"{name}_SECONDS", seconds)
    monkeypatch.setattr(watch, "CHECK_SECONDS", 0.2)
    with ExitStack() as running:

        def run(server: OddImapServer, **changes: Any) -> OddWatched:
            running.enter_context(server)
            values = {"imap_auth": "password", "imap_password": PASSWORD, "imap_poll_seconds": 1}
            (tmp_path / "token.json").write_text("{}")  # of nobody
            where = SimpleNamespace(imap_port=server.port, user=USER, token_uri="http://127.0.0.1:1/")
            made = OddWatched(where, redis_server, tmp_path, values | changes)  # type: ignore[arg-type]
            made.backoff = AccountBackoff(random.Random(1), recovery=0.3)
            running.enter_context(made.running())
            return made

        yield run
