"""Sends notices through apprise to the channels of the settings; decides nothing, and shows no channel's secrets."""

from __future__ import annotations

import logging
import socket
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode, urlsplit

from email_ingestion.errors import ConfigurationError
from email_ingestion.settings import Settings

if TYPE_CHECKING:
    import apprise

PORTS = {"smtp": 25, "smtps": 465}


class Channels:
    """All channels of an installation. Raises ConfigurationError for one that apprise does not understand."""

    def __init__(self, named: Sequence[tuple[str, str]]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # apprise loads a hundred services, old ones too
            self._sender = _sender(named)

    def send(self, title: str, body: str) -> bool:
        """Whether every channel took it."""
        return bool(self._sender.notify(title=title, body=body))


def channels_of(settings: Settings) -> list[tuple[str, str]]:
    """Each channel as apprise writes it, with the setting it comes from."""
    found = [("ALERT_CHANNELS", url) for url in settings.alert_channels]
    if settings.slack_alert_webhook:
        found.append(("SLACK_ALERT_WEBHOOK", settings.slack_alert_webhook))
    if settings.alert_email_recipients:
        found.append(("ALERT_SMTP_URL", _mail(settings.alert_smtp_url, settings.alert_email_recipients)))
    return found


def _sender(named: Sequence[tuple[str, str]]) -> apprise.Apprise:
    try:
        import apprise  # noqa: PLC0415 - 0.3 s, and an extra
    except ImportError as error:
        raise ConfigurationError("ALERT_CHANNELS needs apprise: pip install 'email-ingestion[alerts]'") from error
    # What it says of failures quotes addresses and tokens.
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
    sender = apprise.Apprise()
    for setting, url in named:
        if not sender.add(url):
            raise ConfigurationError(
                f"{setting}: apprise does not understand {urlsplit(url).scheme}://…; see https://github.com/caronc/apprise"
            )
    return sender


def _mail(smtp: str, recipients: Sequence[str]) -> str:
    """smtp://user:password@host:port (STARTTLS with a user) or smtps://… as apprise writes it."""
    server = urlsplit(smtp)
    if server.scheme not in PORTS or not server.hostname:
        raise ConfigurationError("ALERT_SMTP_URL: write smtp://user:password@host:port or smtps://…")
    user, password = server.username or "", server.password or ""
    sender = user if "@" in user else f"email-ingestion@{socket.getfqdn()}"
    asked = {"from": sender, "to": ",".join(recipients), "smtp": server.hostname, "user": user, "pass": password}
    asked["mode"] = "ssl" if server.scheme == "smtps" else "starttls" if user else "insecure"
    scheme = "mailto" if asked["mode"] == "insecure" else "mailtos"
    port = server.port or PORTS[server.scheme]
    return f"{scheme}://{quote(server.hostname)}:{port}?{urlencode({k: v for k, v in asked.items() if v})}"
