"""Checks that somebody would hear of trouble: the thresholds, the contacts, and every channel with its settings.

Nothing is sent; `email-ingestion alert test` does that.
"""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from email_ingestion.doctor.findings import Finding, Findings
from email_ingestion.errors import ConfigurationError
from email_ingestion.ops.alert_channels import PORTS, AlertChannels, Channel, configured_channels, sentences_about
from email_ingestion.ops.alert_thresholds import alert_thresholds
from email_ingestion.ops.contacts import read_contacts
from email_ingestion.settings import Settings

SECONDS = 5.0
TRY = "email-ingestion alert test"


def check_alerts(settings: Settings) -> Findings:
    """Check thresholds, contacts and channels; without a channel there is nothing to find."""
    try:
        alert_thresholds()
    except ConfigurationError as error:
        yield Finding("thresholds", "failed", str(error), "mend it; docs/monitoring.md says what stands there")
    try:
        contacts = read_contacts()
        channels = configured_channels(settings, contacts)
    except ConfigurationError as error:
        yield Finding("alerts", "failed", str(error), f"mend it, then {TRY}")
        return
    for sentence in sentences_about(settings):
        yield Finding("alerts", "degraded", sentence, "change ALERT_CHANNELS")
    for channel in channels:
        yield _channel(settings, channel)
    for level in contacts.people:
        if level.channels and not level.told_of:
            yield Finding(f"contact {level.level}", "degraded", "it has channels and is told of nothing", "set told_of")


def _channel(settings: Settings, channel: Channel) -> Finding:
    check = f"alerts {channel.name}"
    try:
        AlertChannels([channel])
    except ConfigurationError as error:
        return Finding(check, "failed", str(error), f"mend it, then {TRY}")
    if channel.name == "email":
        server = urlsplit(settings.alert_smtp_url)
        problem = _unreachable(server.hostname or "", server.port or PORTS.get(server.scheme, 25))
        if problem:
            return Finding(check, "failed", f"ALERT_SMTP_URL: {problem}", "set it to a mail server that takes notices")
        return Finding(check, "ok", f"{len(settings.alert_email_recipients)} recipients; the mail server listens")
    if channel.name == "pagerduty" and channel.setting == "PAGERDUTY_ROUTING_KEY":
        server = urlsplit(settings.pagerduty_events_url)
        problem = _unreachable(server.hostname or "", server.port or (443 if server.scheme == "https" else 80))
        if problem:
            return Finding(check, "failed", f"PAGERDUTY_EVENTS_URL: {problem}", "see the network, or a proxy")
    priorities = "every priority" if channel.told_of is None else ", ".join(sorted(channel.told_of)) or "nothing"
    return Finding(check, "ok", f"it is told of {priorities}; whether it takes notices: {TRY}")


def _unreachable(host: str, port: int) -> str:
    """Return why a server cannot be reached; empty when it can."""
    try:
        socket.create_connection((host, port), timeout=SECONDS).close()
    except OSError as error:
        return f"{host}:{port} cannot be reached: {error.strerror or error}"
    return ""
