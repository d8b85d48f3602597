"""Declares metrics with their name, documentation and closed label sets; it knows no event and no particular metric."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Collection, Iterator
from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from email_ingestion import errors

PREFIX = "email_ingestion"
OTHER = "_OTHER"


def label_value(value: str, closed_set: Collection[str]) -> str:
    """Return `value`, or `_OTHER` if it is not in the closed set: unforeseen values must not make new series."""
    return value if value in closed_set else OTHER


def _error_classes(root: type[Exception]) -> Iterator[str]:
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child.__name__
            yield from _error_classes(child)


BUILTIN_ERRORS = frozenset(
    name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, Exception)
)
ERROR_TYPES = (*_error_classes(errors.EmailIngestionError), OTHER)


class MetricFactory:
    """Declares metrics in one registry; every name gets the prefix `email_ingestion_`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

    def counter(self, name: str, documentation: str, /, **labels: Collection[str]) -> Counter:
        """Declare a counter that starts at zero for every combination of its label values."""
        found = Counter(name, documentation, tuple(labels), namespace=PREFIX, registry=self.registry)
        for values in product(*labels.values()) if labels else ():
            found.labels(*values)
        return found

    def open_counter(self, name: str, documentation: str, *labels: str) -> Counter:
        """Declare a counter whose series appear with their first event, because most combinations never come."""
        return Counter(name, documentation, labels, namespace=PREFIX, registry=self.registry)

    def gauge(self, name: str, documentation: str, *labels: str) -> Gauge:
        """Declare a labelled gauge; a series appears once it is set."""
        return Gauge(name, documentation, labels, namespace=PREFIX, registry=self.registry)

    def histogram(self, name: str, documentation: str, *bounds: float, **labels: Collection[str]) -> Histogram:
        """Declare a histogram with these upper bounds, in the unit of its name, empty for every label value."""
        found = Histogram(name, documentation, tuple(labels), namespace=PREFIX, registry=self.registry, buckets=bounds)
        for values in product(*labels.values()) if labels else ():
            found.labels(*values)
        return found

    def optional_gauge(self, name: str, documentation: str) -> Callable[[float | None], None]:
        """Declare an unlabelled gauge that is absent until it is set, and while it is None; return what sets it."""
        gauge = _OptionalGauge(f"{PREFIX}_{name}", documentation)
        self.registry.register(gauge)
        return gauge.set


class _OptionalGauge(Collector):
    """prometheus_client shows an unlabelled gauge as 0 before it is set, which reads as an answer."""

    def __init__(self, name: str, documentation: str) -> None:
        self._name = name
        self._documentation = documentation
        self._value: float | None = None

    def set(self, value: float | None) -> None:
        self._value = value

    def collect(self) -> Iterator[GaugeMetricFamily]:
        if self._value is not None:
            yield GaugeMetricFamily(self._name, self._documentation, self._value)
