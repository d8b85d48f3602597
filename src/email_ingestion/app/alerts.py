"""A thread that looks at our own metrics now and then and tells somebody; for installations without a Prometheus."""

from __future__ import annotations

from pathlib import Path

from email_ingestion.background import PeriodicThread
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
        self._observe = observe
        self._monitor = AlertMonitor(metrics.registry.collect, self._send, MEMORY)
        self._thread = PeriodicThread(
            "alerts",
            settings.alert_seconds,
            self._monitor.evaluate,
            immediate=False,
            on_error=lambda error: observe(LoopFailed("alerts", error)),
        )

    def start(self) -> None:
        """Begin to evaluate the alerts."""
        if self._channels:
            self._thread.start()

    def close(self) -> None:
        """Evaluate no more; a channel that hangs is not waited for."""
        self._thread.close()

    def _send(self, notification: Notification) -> bool:
        sent = self._channels is not None and self._channels.send(notification.title, notification.body)
        self._observe(Notified(notification.firing, notification.resolved, sent))
        return sent
