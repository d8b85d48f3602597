"""A thread that looks at our own metrics now and then and tells somebody; for installations without a Prometheus."""

from __future__ import annotations

import threading
from pathlib import Path

from email_ingestion.events import LoopFailed, Notified, Observe
from email_ingestion.ops.alert_channels import AlertChannels, configured_channels
from email_ingestion.ops.builtin_alerts import AlertMonitor, Notification
from email_ingestion.ops.metrics import Metrics
from email_ingestion.settings import Settings

MEMORY = Path("data/alerts.json")


class AlertWatch:
    """`start` it, `close` it; without a channel it does nothing. Raises ConfigurationError for one that is wrong."""

    def __init__(self, settings: Settings, metrics: Metrics, observe: Observe) -> None:
        named = configured_channels(settings)
        self._channels = AlertChannels(named) if named else None
        self._seconds = settings.alert_seconds
        self._observe = observe
        self._monitor = AlertMonitor(metrics.registry.collect, self._send, MEMORY)
        self._closed = threading.Event()

    def start(self) -> None:
        """Begin to look."""
        if self._channels:
            threading.Thread(target=self._watch, name="alerts", daemon=True).start()

    def close(self) -> None:
        """Look no more; a channel that hangs is not waited for."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(self._seconds):
            try:
                self._monitor.evaluate()
            except Exception as error:  # noqa: BLE001 - who watches must not die of what it sees
                self._observe(LoopFailed("alerts", error))

    def _send(self, notification: Notification) -> bool:
        sent = self._channels is not None and self._channels.send(notification.title, notification.body)
        self._observe(Notified(notification.firing, notification.resolved, sent))
        return sent
