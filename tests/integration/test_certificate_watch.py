"""When the certificates of servers end, asked of a server with TLS."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from socket import create_server

import pytest

from email_ingestion import events
from email_ingestion.app.certificate_watch import CertificateWatch, TlsServer, tls_servers
from email_ingestion.settings import Settings
from tests.drills.certificate import make_certificate


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server whose certificate is good for five days and that closes every connection."""
    certificate = make_certificate(tmp_path, days=5)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with suppress(OSError), context.wrap_socket(connection, server_side=True):
                        pass

        threading.Thread(target=answer, daemon=True).start()
        yield listening.getsockname()[1]
        listening.close()


def test_the_end_of_every_certificate_is_announced(port: int) -> None:
    settings = Settings(
        imap_host="localhost",
        imap_port=port,
        redis_url=f"rediss://127.0.0.1:{port}/0",
        google_token_uri=f"https://localhost:{port}/token",
        sinks="webhook",
        webhook_url="http://localhost/plain",
    )
    assert tls_servers(settings, settings.all_accounts) == [
        TlsServer("imap", "localhost", port),
        TlsServer("redis", "127.0.0.1", port),
    ]
    seen: list[events.Event] = []
    told = threading.Event()

    def observe(event: events.Event) -> None:
        seen.append(event)
        if len(seen) == 2:
            told.set()

    watch = CertificateWatch(settings, lambda: settings.all_accounts, observe)
    watch.start()
    watch.run_now()
    assert told.wait(60)
    watch.close(None)
    assert [type(event) for event in seen] == [events.CertificateSeen] * 2
    for event, name in zip(seen, ("imap", "redis"), strict=True):
        assert isinstance(event, events.CertificateSeen)
        assert event.dependency == name
        assert 4.9 < (event.ends_at - time.time()) / 86_400 < 5.1


def test_a_server_that_is_away_ends_nothing_and_is_asked_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(imap_host="127.0.0.1", imap_port=1, google_token_uri="http://localhost:1/token")
    seen: list[events.Event] = []
    watch = CertificateWatch(settings, lambda: settings.all_accounts, seen.append)
    assert (watch._look() < 3600, seen) == (True, [])
