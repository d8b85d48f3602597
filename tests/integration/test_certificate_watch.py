"""When the certificates of servers end, asked of a server with TLS."""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from socket import create_server, socket

import pytest

from email_ingestion import events
from email_ingestion.app.certificate_watch import CertificateWatch, TlsServer, tls_servers
from email_ingestion.doctor.network_checks import check_connection
from email_ingestion.errors import ConfigurationError
from email_ingestion.settings import Settings, environment, load_settings, sources
from tests.drills.certificate import make_certificate


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server whose certificate is good for five days and that closes every connection."""
    certificate = make_certificate(tmp_path, days=5)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with create_server(("127.0.0.1", 0)) as listening:
        answer_with(listening, certificate)
        yield listening.getsockname()[1]
        listening.close()


def answer_with(listening: socket, certificate: Path) -> None:
    """Shake hands with each connection, in a thread that ends with the socket, and close it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def answer() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with suppress(OSError), context.wrap_socket(connection, server_side=True):
                    pass

    threading.Thread(target=answer, daemon=True).start()


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


@pytest.mark.parametrize(
    ("host", "trusted", "told"),
    [
        ("localhost", True, ("", "")),
        ("localhost", False, ("is not trusted", "SSL_CERT_FILE names, then email-ingestion restart producer")),
        ("127.0.0.2", True, ("is not trusted", "set IMAP_HOST to a name that the certificate has")),
    ],
)
def test_a_file_of_authorities_in_env_is_trusted_and_what_is_refused_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, trusted: bool, told: tuple[str, str]
) -> None:
    certificate = make_certificate(tmp_path, days=5)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setattr(sources, "_set_here", set())
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(f"SSL_CERT_FILE={certificate}\n" if trusted else "")
    load_settings()
    try:
        assert "SSL_CERT_FILE" not in environment()  # a child reads `.env` itself
        with create_server((host, 0)) as listening:
            answer_with(listening, certificate)
            found = check_connection("server", host, listening.getsockname()[1], tls=True)
    finally:
        os.environ.pop("SSL_CERT_FILE", None)
    assert (told[0] in found.cause, told[1] in found.remedy) == (True, True), found
    (tmp_path / ".env").write_text("SSL_CERT_FILE=none.pem\n")
    with pytest.raises(ConfigurationError, match=r"SSL_CERT_FILE: cannot read none\.pem"):
        load_settings()
