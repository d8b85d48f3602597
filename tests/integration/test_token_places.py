"""Where a token's file cannot be written, and what comes of an endpoint that never finishes."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from email_ingestion.breaker import Breaker, BreakerPolicy
from email_ingestion.errors import TokenRefreshError
from email_ingestion.events import TokenNotSaved
from email_ingestion.oauth2 import TokenSource, token_endpoint
from email_ingestion.oauth2.token_endpoint import request_token
from email_ingestion.oauth2.token_refresher import TokenRefresher
from gmail_sandbox import RunningSandbox, running_sandbox
from tests.servers.accounts import of_sandbox
from tests.servers.links import Heard
from tests.servers.processes import token_of


@pytest.fixture
def sandbox() -> Iterator[RunningSandbox]:
    with running_sandbox() as running:
        yield running


@contextmanager
def unwritable(content: str) -> Iterator[Path]:
    """A file in a folder where nobody can make another one, not even root."""
    descriptor = os.memfd_create("token")
    try:
        os.write(descriptor, content.encode())
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="of Linux")
def test_a_token_in_a_folder_that_cannot_be_written_is_used_renewed_and_told_of(sandbox: RunningSandbox):
    heard = Heard()
    with unwritable(json.dumps(token_of(sandbox))) as path:
        before = path.read_text()
        account = of_sandbox(sandbox, google_token_file=path)
        refresher = TokenRefresher(
            "default",
            TokenSource(account),
            Breaker("oauth2", BreakerPolicy(), (TokenRefreshError,), heard),
            heard,
        )
        first = refresher.get()
        assert refresher.get() == first
        assert sandbox.with_stats(lambda stats: stats.token_requests) == 1
        assert refresher.get(rejected=first) != first
        assert sandbox.with_stats(lambda stats: stats.token_requests) == 2
        assert path.read_text() == before
    assert heard.of(TokenNotSaved)
    assert "cannot write" in str(heard.of(TokenNotSaved)[0].error)


@pytest.mark.parametrize("beginning", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n"])
def test_an_endpoint_that_sends_a_byte_now_and_then_ends_at_a_deadline(
    beginning: bytes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(token_endpoint, "DEADLINE_SECONDS", 1.0)
    over = threading.Event()

    def trickle(listening: socket.socket) -> None:
        peer, _ = listening.accept()
        with peer, suppress(OSError):
            peer.sendall(beginning or b"HTTP/1.1 200 OK\r\n")
            while not over.wait(0.05):
                peer.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = threading.Thread(target=trickle, args=(listening,), daemon=True)
        serving.start()
        started = time.monotonic()
        with pytest.raises(TokenRefreshError, match="within 1 s"):
            request_token(f"http://127.0.0.1:{listening.getsockname()[1]}/token", {"grant_type": "refresh_token"})
        assert time.monotonic() - started < 20
        over.set()
        serving.join()
