"""Looks now and then when the TLS certificates end of the servers that this installation talks to.

A certificate that is not trusted is no matter of its end: whoever connects there fails, and says so.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from email_ingestion.background import PeriodicThread
from email_ingestion.certificates import certificate_end
from email_ingestion.events import CertificateSeen, LoopFailed, Observe
from email_ingestion.settings import Account, Settings

FIRST_SECONDS = 5.0  # after the start, whose connections come first
EVERY_SECONDS = 3 * 3600.0
RETRY_SECONDS = 300.0
PORTS = {"https": 443, "rediss": 6379}


@dataclass(frozen=True, slots=True)
class TlsServer:
    """A server that is spoken to over TLS, under the name of its dependency."""

    dependency: str
    host: str
    port: int


def tls_servers(settings: Settings, accounts: Sequence[Account]) -> list[TlsServer]:
    """Return the servers whose certificates matter, each once: mail, tokens, Redis, the webhook."""
    found: dict[tuple[str, int], TlsServer] = {}
    for server in _all_servers(settings, accounts):
        found.setdefault((server.host, server.port), server)
    return list(found.values())


def _all_servers(settings: Settings, accounts: Sequence[Account]) -> Iterator[TlsServer]:
    for account in accounts:
        if account.imap_tls:
            name = "imap" if account.name == accounts[0].name else f"imap:{account.name}"
            yield TlsServer(name, account.imap_host, account.imap_port)
    tokens = [each.google_token_uri for each in accounts if each.imap_auth == "oauth2"]
    webhook = [settings.webhook_url] if settings.webhook_url and "webhook" in settings.sinks else []
    named = [("redis", settings.redis_address.url), *(("oauth2", url) for url in tokens)]
    for name, url in (*named, *(("webhook", url) for url in webhook)):
        address = urlsplit(url)
        if address.scheme in PORTS and address.hostname:
            yield TlsServer(name, address.hostname, address.port or PORTS[address.scheme])


class CertificateWatch(PeriodicThread):
    """Announces the end of each certificate, a few times a day."""

    def __init__(self, settings: Settings, accounts: Callable[[], Sequence[Account]], observe: Observe) -> None:
        super().__init__("certificates", FIRST_SECONDS, self._look, immediate=False, on_error=self._failed)
        self._settings = settings
        self._accounts = accounts
        self._observe = observe

    def _look(self) -> float:
        unknown = 0
        for server in tls_servers(self._settings, self._accounts()):
            if self.is_closed():
                break
            try:
                ends_at = certificate_end(server.host, server.port)
            except ssl.SSLCertVerificationError:
                continue
            except OSError:  # it cannot be reached now, which is told elsewhere
                unknown += 1
                continue
            self._observe(CertificateSeen(server.dependency, ends_at))
        return RETRY_SECONDS if unknown else EVERY_SECONDS

    def _failed(self, error: Exception) -> None:
        self._observe(LoopFailed("certificates", error, FIRST_SECONDS))
