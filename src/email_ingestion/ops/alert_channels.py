"""Sends notifications through apprise to the channels of the settings; shows no channel's secrets."""

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


class AlertChannels:
    """The channels of an installation, as pairs of setting and URL.

    Raises ConfigurationError for a channel that apprise does not understand.
    """

    def __init__(self, channels: Sequence[tuple[str, str]]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # apprise loads a hundred services, old ones too
            self._sender = _sender(channels)

    def send(self, title: str, body: str) -> bool:
        """Send a notification; return whether every channel took it."""
        return bool(self._sender.notify(title=title, body=body))


def configured_channels(settings: Settings) -> list[tuple[str, str]]:
    """Return the channels of the settings as pairs of the setting's name and apprise's URL."""
    found = [("ALERT_CHANNELS", url) for url in settings.alert_channels]
    if settings.slack_alert_webhook:
        found.append(("SLACK_ALERT_WEBHOOK", settings.slack_alert_webhook))
    if settings.alert_email_recipients:
        found.append(("ALERT_SMTP_URL", _mail(settings.alert_smtp_url, settings.alert_email_recipients)))
    return found


def _sender(channels: Sequence[tuple[str, str]]) -> apprise.Apprise:
    try:
        import apprise  # noqa: PLC0415 - 0.3 s, and an extra
    except ImportError as error:
        raise ConfigurationError("ALERT_CHANNELS needs apprise: pip install 'email-ingestion[alerts]'") from error
    # Its log lines about failures quote addresses and tokens.
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
    sender = apprise.Apprise()
    for setting, url in channels:
        if not sender.add(url):
            raise ConfigurationError(
                f"{setting}: apprise does not understand {urlsplit(url).scheme}://…; see https://github.com/caronc/apprise"
            )
    return sender


def _mail(smtp: str, recipients: Sequence[str]) -> str:
    """Turn smtp://user:password@host:port (STARTTLS with a user) or smtps://… into apprise's URL."""
    server = urlsplit(smtp)
    if server.scheme not in PORTS or not server.hostname:
        raise ConfigurationError("ALERT_SMTP_URL: write smtp://user:password@host:port or smtps://…")
    user, password = server.username or "", server.password or ""
    sender = user if "@" in user else f"email-ingestion@{socket.getfqdn()}"
    query = {"from": sender, "to": ",".join(recipients), "smtp": server.hostname, "user": user, "pass": password}
    query["mode"] = "ssl" if server.scheme == "smtps" else "starttls" if user else "insecure"
    scheme = "mailto" if query["mode"] == "insecure" else "mailtos"
    port = server.port or PORTS[server.scheme]
    return f"{scheme}://{quote(server.hostname)}:{port}?{urlencode({k: v for k, v in query.items() if v})}"
