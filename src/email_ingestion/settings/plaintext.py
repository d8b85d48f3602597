"""Which settings send mail or secrets to another machine without TLS."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from email_ingestion.settings.definitions import Settings, is_loopback


@dataclass(frozen=True, slots=True)
class PlaintextConnection:
    """A setting, the host it leads to without TLS, what can be read on the way, and what to write instead."""

    setting: str
    host: str
    exposed: str
    remedy: str

    @property
    def is_internal(self) -> bool:
        """Whether the host has a name without a dot, as the services of a container network have."""
        return "." not in self.host and ":" not in self.host


def plaintext_connections(settings: Settings) -> Iterator[PlaintextConnection]:
    """Yield the connections to other machines that are configured without TLS and carry mail or a secret.

    Those that carry the key to a mailbox (IMAP, token endpoint) are refused when the settings are read.
    """
    redis = settings.redis_address.url
    secret = "password" if urlsplit(redis).password else ""
    candidates = [
        ("REDIS_URL", redis, "redis", f"mail and the {secret}" if secret else "mail", "REDIS_TLS=true or rediss://"),
        ("WEBHOOK_URL", settings.webhook_url, "http", "mail", "https://"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", settings.otel_exporter_otlp_endpoint, "http", "traces", "https://"),
        ("INCIDENT_WEBHOOK", settings.incident_webhook, "http", "its token", "https://"),
        ("PAGERDUTY_EVENTS_URL", settings.pagerduty_events_url, "http", "its key", "https://"),
        ("SLACK_ALERT_WEBHOOK", settings.slack_alert_webhook, "http", "its secret address", "https://"),
    ]
    if urlsplit(settings.alert_smtp_url).password:
        candidates.append(("ALERT_SMTP_URL", settings.alert_smtp_url, "smtp", "its password", "smtps://"))
    for setting, url, scheme, exposed, remedy in candidates:
        address = urlsplit(str(url)) if url else None
        if address and address.scheme == scheme and address.hostname and not is_loopback(address.hostname):
            yield PlaintextConnection(setting, address.hostname, exposed, remedy)
