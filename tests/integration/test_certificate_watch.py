"""When the certificates of servers end, asked of a server with TLS."""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from socket import create_connection, create_server, socket

import pytest

from email_ingestion import events
from email_ingestion.app.certificate_watch import CertificateWatch, TlsServer, tls_servers
from email_ingestion.doctor.network_checks import check_connection
from email_ingestion.errors import ConfigurationError, IMAPConnectionError, RedisConnectionError
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.settings import Settings, environment, load_settings, sources
from gmail_sandbox import SandboxSettings, running_sandbox
from tests.drills.certificate import make_certificate
from tests.servers.accounts import account
from tests.servers.links import link
from tests.servers.ports import free_port


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


def test_certificates_of_redis_that_are_rotated_end_no_connection_and_what_new_ones_meet_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, expired, foreign = _certificates(tmp_path, monkeypatch)
    with running_redis_with_tls(tmp_path, good) as port:
        old = link(f"rediss://localhost:{port}/0")

        def rotate(certificate: Path) -> None:
            files = ("tls-cert-file", str(certificate), "tls-key-file", str(certificate))
            old.call(lambda: old.client.execute_command("CONFIG", "SET", *files))

        def told(host: str = "localhost") -> str:
            new = link(f"rediss://{host}:{port}/0")
            with pytest.raises(RedisConnectionError) as caught:
                new.call(new.client.ping)
            assert old.call(old.client.ping)
            return str(caught.value)

        rotate(expired)
        assert re.search(r"the certificate of localhost expired on 20\d\d-\d\d-\d\d at", told())
        rotate(foreign)
        assert "the certificate of localhost is not trusted: self-signed certificate" in told()
        rotate(good)
        assert "the certificate of 127.0.0.2 is not trusted: IP address mismatch" in told("127.0.0.2")
        new = link(f"rediss://localhost:{port}/0")
        assert new.call(new.client.ping)


CERTIFICATES = {"good": 5, "expired": -1, "foreign": 5}


def _certificates(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Make each, of an authority of its own name: OpenSSL takes the first of a name. The foreign one is not trusted."""
    made = []
    for name, days in CERTIFICATES.items():
        (folder / name).mkdir()
        made.append(make_certificate(folder / name, days, f"the {name} authority"))
    authorities = folder / "authorities.pem"
    authorities.write_text("".join(each.read_text() for each in made[:2]))
    monkeypatch.setenv("SSL_CERT_FILE", str(authorities))
    return made


@contextmanager
def running_redis_with_tls(folder: Path, certificate: Path) -> Iterator[int]:
    """A Redis that speaks nothing but TLS."""
    port = free_port()
    files = ["--tls-cert-file", certificate, "--tls-key-file", certificate, "--tls-ca-cert-file", certificate]
    options = ["--tls-port", port, "--port", 0, "--tls-auth-clients", "no", "--save", "", "--dir", folder, *files]
    command = ["redis-server", *map(str, options)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        while "Ready to accept" not in (line := process.stdout.readline()):
            if not line:
                pytest.skip("this redis-server was built without TLS")
        yield port
    finally:
        process.kill()
        process.communicate()


def test_certificates_of_a_mail_server_that_are_rotated_end_no_session_and_what_new_ones_meet_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, expired, foreign = _certificates(tmp_path, monkeypatch)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(good)
    with running_sandbox(SandboxSettings()) as sandbox, create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=_terminate_tls, args=(listening, context, sandbox.imap_port), daemon=True).start()
        place = {"imap_host": "localhost", "imap_port": listening.getsockname()[1], "imap_tls": True}
        mine = account(**place, imap_user=sandbox.user)
        with closing(ImapMailbox(mine, 60.0)) as session:
            for certificate, told in ((expired, "localhost expired on 20"), (foreign, "localhost is not trusted")):
                context.load_cert_chain(certificate)
                with pytest.raises(IMAPConnectionError, match=f"the certificate of {told}"):
                    ImapMailbox(mine, 60.0)
                session.noop()
            session.login(sandbox.access_token())
            context.load_cert_chain(good)
            ImapMailbox(mine, 60.0).close()
        listening.close()


def _terminate_tls(listening: socket, context: ssl.SSLContext, port: int) -> None:
    """Pass on what comes by TLS, until the socket is closed."""
    with suppress(OSError):
        while True:
            connection, _ = listening.accept()
            with suppress(OSError):
                secure = context.wrap_socket(connection, server_side=True)
                plain = create_connection(("127.0.0.1", port))
                for pair in ((secure, plain), (plain, secure)):
                    threading.Thread(target=_pass_on, args=pair, daemon=True).start()


def _pass_on(source: socket, target: socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    for each in (source, target):
        each.close()
