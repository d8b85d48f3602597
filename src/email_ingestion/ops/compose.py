"""Puts the observers of a process together: one `Observe` for the loops, which never raises into them."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from email_ingestion.events import Event, Observe
from email_ingestion.ops.gauges import ControlGauges
from email_ingestion.ops.logs import logger
from email_ingestion.ops.metrics import Metrics
from email_ingestion.ops.narrate import Narrator
from email_ingestion.ops.records import Breakers, Identity, Names
from email_ingestion.ops.status import Status
from email_ingestion.overrides import OperatorOverrides


@dataclass(frozen=True, slots=True)
class Ops:
    """What a process shows of itself."""

    status: Status
    metrics: Metrics
    observe: Observe


def open_ops(
    identity: Identity, names: Names, breakers: Breakers, control: OperatorOverrides | None = None, *further: Observe
) -> Ops:
    """The board, the registry and the observer that feeds both and the log, and `further` ones."""
    control = control or OperatorOverrides(identity.component)
    status = Status(identity, names, breakers, control=control)
    metrics = Metrics(identity, names, breakers, status.redis)
    metrics.registry.register(ControlGauges(control))
    return Ops(status, metrics, compose(metrics, status, Narrator(), *further))


def compose(*observers: Observe) -> Observe:
    """An observer that tells all of them, whatever one of them does."""
    broken: set[tuple[int, type[Exception]]] = set()
    lock = threading.Lock()

    def observe(event: Event) -> None:
        for place, observer in enumerate(observers):
            try:
                observer(event)
            except Exception as error:  # noqa: BLE001 - a fault in showing the work must not stop the work
                with lock:
                    new = (place, type(error)) not in broken
                    broken.add((place, type(error)))
                if new:
                    logger("ops").error("observer_failed", observed=type(event).__name__, exc_info=error)

    return observe
