"""Combines the observers of a process into one `Observe` for the loops, which never raises into them."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from email_ingestion.events import Event, LoopFailed, Observe
from email_ingestion.ops.collectors import OverrideGauges
from email_ingestion.ops.event_log import EventLogger
from email_ingestion.ops.logs import logger
from email_ingestion.ops.metrics import Metrics
from email_ingestion.ops.status import Status
from email_ingestion.ops.status_records import Breakers, Identity, Names
from email_ingestion.overrides import OperatorOverrides


@dataclass(frozen=True, slots=True)
class Ops:
    """The status board, the metrics and the observer that feeds them."""

    status: Status
    metrics: Metrics
    observe: Observe


def open_ops(
    identity: Identity, names: Names, breakers: Breakers, overrides: OperatorOverrides | None = None, *further: Observe
) -> Ops:
    """Make the status board, the metrics and the observer that feeds both, the log and the `further` observers."""
    overrides = overrides or OperatorOverrides(identity.component)
    status = Status(identity, names, breakers, overrides=overrides)
    metrics = Metrics(identity, names, breakers, status.redis)
    metrics.registry.register(OverrideGauges(overrides))
    return Ops(status, metrics, combine(metrics, status, EventLogger(), *further))


def combine(*observers: Observe) -> Observe:
    """Return an observer that calls all of `observers`; one that raises is logged once for each kind of error."""
    broken: set[tuple[int, type[Exception]]] = set()
    lock = threading.Lock()

    def observe(event: Event) -> None:
        for index, observer in enumerate(observers):
            try:
                observer(event)
            except Exception as error:  # noqa: BLE001 - a fault in showing the work must not stop the work
                with lock:
                    new = (index, type(error)) not in broken
                    broken.add((index, type(error)))
                if new:
                    logger("ops").error("observer_failed", observed=type(event).__name__, exc_info=error)
                if not isinstance(event, LoopFailed):  # the others show what this one could not
                    observe(LoopFailed("observe", error))

    return observe
