"""Sends notifications to the channels of the settings and of config/contacts.toml; shows no channel's secrets.

A channel is `email`, `slack` or `pagerduty`, with settings of its own, or a URL of apprise.
"""

from __future__ import annotations

import logging
import re
import socket
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from email_ingestion.errors import ConfigurationError
from email_ingestion.ops.contacts import CONTACTS_FILE, Contacts, read_contacts
from email_ingestion.ops.notices import NoticeItem, Notification
from email_ingestion.settings import Settings

PORTS = {"smtp": 25, "smtps": 465}
NAMES = ("email", "slack", "pagerduty")
SENTRY = (
    "sentry takes the exceptions of programs, not notices: take email, slack, pagerduty or a URL of apprise; what "
    "nobody foresaw rings as EmailIngestionLoopFailing, and `email-ingestion errors` groups it as Sentry would"
)
PAGERDUTY_SEVERITY = {"P1": "critical", "P2": "error", "P3": "warning", "P4": "info"}
PAGERDUTY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Channel:
    """One way to people: where it is set, its name, its URL or key, and the priorities it is told of (None: all)."""

    setting: str
    name: str
    target: str
    told_of: frozenset[str] | None = None


class AlertChannels:
    """The channels of an installation. Raises ConfigurationError for one that cannot be used as it is written."""

    def __init__(self, channels: Sequence[Channel], events_url: str = "") -> None:
        """`events_url` is where PagerDuty takes events."""
        self._events_url = events_url
        self._senders = [(channel, _sender(channel)) for channel in channels]

    def send(self, notification: Notification) -> bool:
        """Send to each channel what it is told of; return whether every channel took it."""
        return all(taken for _, taken in self.send_each(notification))

    def send_each(self, notification: Notification) -> list[tuple[Channel, bool]]:
        """Send to each channel what it is told of; return which took it. What nobody is told of, all are told."""
        parts = [(channel, sender, notification.only(channel.told_of)) for channel, sender in self._senders]
        heard = {item for _, _, part in parts if part for item in part.items}
        unheard = Notification(tuple(item for item in notification.items if item not in heard))
        if unheard.items:
            parts = [(channel, sender, _joined(part, unheard)) for channel, sender, part in parts]
        return [(channel, self._post(channel, sender, part)) for channel, sender, part in parts if part]

    def _post(self, channel: Channel, sender: Any, part: Notification) -> bool:
        if sender is None:
            return all(_post_to_pagerduty(self._events_url, channel.target, item) for item in part.items)
        import apprise  # noqa: PLC0415 - a sender is one of it

        # As text: in a chat an alert's words call nobody, and in mail they are no HTML.
        return bool(sender.notify(title=part.title, body=part.body, body_format=apprise.NotifyFormat.TEXT))


def _joined(part: Notification | None, more: Notification) -> Notification:
    return Notification((*(part.items if part else ()), *more.items))


def configured_channels(settings: Settings, contacts: Contacts | None = None) -> list[Channel]:
    """Return the channels of the settings and the contacts, each once. Raises ConfigurationError.

    With short names in ALERT_CHANNELS, only the channels that are named there are used; else all that have settings.
    A channel that no contact names is told of everything.
    """
    contacts = read_contacts() if contacts is None else contacts
    words = [word for word in settings.alert_channels if word.lower() != "sentry"]
    if not any(word.lower() in (*NAMES, "sentry") for word in settings.alert_channels):
        words += ["slack"] if settings.slack_alert_webhook else []
        words += ["email"] if settings.alert_email_recipients else []
        words += ["pagerduty"] if settings.pagerduty_routing_key else []
    found = {(each.name, each.target): each for word in words for each in [_channel(settings, "ALERT_CHANNELS", word)]}
    limits: dict[tuple[str, str], frozenset[str]] = {}
    for person in contacts.people:
        for word in person.channels:
            channel = _channel(settings, f"{CONTACTS_FILE} [{person.level}]", word)
            key = (channel.name, channel.target)
            found.setdefault(key, channel)
            limits[key] = limits.get(key, frozenset()) | set(person.told_of)
    return [replace(channel, told_of=limits.get(key)) for key, channel in found.items()]


def told_of_everything(channels: Sequence[Channel]) -> list[Channel]:
    """Return the channels as if no contact had limited what they are told of."""
    return [replace(channel, told_of=None) for channel in channels]


def sentences_about(settings: Settings) -> Iterator[str]:
    """Yield what is written in ALERT_CHANNELS and tells nobody, with what to use instead."""
    if any(word.lower() == "sentry" for word in settings.alert_channels):
        yield f"ALERT_CHANNELS: {SENTRY}"
    if not any(word.lower() in NAMES for word in settings.alert_channels):
        return
    unused = {
        "slack": ("SLACK_ALERT_WEBHOOK", settings.slack_alert_webhook),
        "email": ("ALERT_EMAIL_RECIPIENTS", settings.alert_email_recipients),
        "pagerduty": ("PAGERDUTY_ROUTING_KEY", settings.pagerduty_routing_key),
    }
    named = {word.lower() for word in settings.alert_channels}
    for name, (setting, value) in unused.items():
        if value and name not in named:
            yield f"{setting} is set, but {name} is not named in ALERT_CHANNELS: nobody is told that way"


def _channel(settings: Settings, place: str, word: str) -> Channel:
    name = word.lower()
    if name == "slack":
        return Channel(
            "SLACK_ALERT_WEBHOOK", name, _needed("slack", "SLACK_ALERT_WEBHOOK", settings.slack_alert_webhook)
        )
    if name == "pagerduty":
        key = _needed("pagerduty", "PAGERDUTY_ROUTING_KEY", settings.pagerduty_routing_key)
        if not re.fullmatch(r"[A-Za-z0-9_-]{20,64}", key):
            raise ConfigurationError(
                "PAGERDUTY_ROUTING_KEY is no integration key: take the 32 characters of an Events API v2 integration"
            )
        return Channel("PAGERDUTY_ROUTING_KEY", name, key)
    if name == "email":
        if not settings.alert_email_recipients:
            _needed("email", "ALERT_EMAIL_RECIPIENTS", None)
        return Channel("ALERT_SMTP_URL", name, _mail(settings.alert_smtp_url, settings.alert_email_recipients))
    if "://" not in word:
        raise ConfigurationError(
            f"{place}: a channel is {', '.join(NAMES)} or a URL of apprise (https://github.com/caronc/apprise)"
            + (f", not {word!r}" if re.fullmatch(r"[a-z]{1,15}", name) else "")
        )
    return Channel(place, urlsplit(word).scheme, word)


def _needed(name: str, setting: str, value: str | None) -> str:
    if not value:
        raise ConfigurationError(f"the channel {name} needs {setting}; see config/.env.example")
    return value


def _sender(channel: Channel) -> Any:
    """Return apprise's sender for a channel; None for PagerDuty, whose events have an end, which apprise lacks."""
    if channel.name == "pagerduty" and "://" not in channel.target:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # apprise loads a hundred services, old ones too
            import apprise  # noqa: PLC0415 - 0.3 s, and an extra

            # Its log lines about failures quote addresses and tokens.
            logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
            # A redirect may lead to an address that only this machine can reach.
            sender = apprise.Apprise(asset=apprise.AppriseAsset(http_redirects=False))
            understood = sender.add(channel.target)
    except ImportError as error:
        raise ConfigurationError("ALERT_CHANNELS needs apprise: pip install 'email-ingestion[alerts]'") from error
    if not understood:
        scheme = urlsplit(channel.target).scheme
        raise ConfigurationError(
            f"{channel.setting}: apprise does not understand {scheme}://…; see https://github.com/caronc/apprise"
        )
    return sender


def _post_to_pagerduty(url: str, key: str, item: NoticeItem) -> bool:
    """Trigger or resolve an incident by PagerDuty's Events API v2; return whether it took that."""
    import httpx  # noqa: PLC0415 - slow to load

    from email_ingestion.http_requests import ask  # noqa: PLC0415

    host = socket.gethostname()
    event: dict[str, Any] = {"routing_key": key, "event_action": "resolve" if item.over else "trigger"}
    if item.key:
        event["dedup_key"] = f"email-ingestion/{host}/{item.key}"
    if not item.over:
        severity = PAGERDUTY_SEVERITY.get(item.priority, "error")
        event["payload"] = {
            "summary": f"[{item.priority}] {item.sentence}"[:1024],
            "source": host,
            "severity": severity,
        }
        event["links"] = [{"href": item.link, "text": "runbook"}] if item.link else []
    try:
        return ask("POST", url, seconds=PAGERDUTY_SECONDS, body=event).is_success
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


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
