"""How metrics are declared: name, help and closed label sets at once; knows no event and no particular metric."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from email_ingestion import errors

PREFIX = "email_ingestion"
OTHER = "_OTHER"


def member(value: str, closed_set: Collection[str]) -> str:
    """`value` where it may be a label, else `_OTHER`: a series per value nobody foresaw would fill Prometheus."""
    return value if value in closed_set else OTHER


def _classes(root: type[Exception]) -> Iterator[str]:
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child.__name__
            yield from _classes(child)


ERROR_TYPES = (*_classes(errors.EmailIngestionError), OTHER)


class Declare:
    """Declares metrics in one registry; every name gets the prefix."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

    def counter(self, name: str, what: str, /, **labels: Collection[str]) -> Counter:
        """A counter, at zero for every combination of its label values."""
        found = Counter(name, what, tuple(labels), namespace=PREFIX, registry=self.registry)
        for values in product(*labels.values()) if labels else ():
            found.labels(*values)
        return found

    def gauge(self, name: str, what: str, *labels: str) -> Gauge:
        """A labelled gauge; a series appears once it is set."""
        return Gauge(name, what, labels, namespace=PREFIX, registry=self.registry)

    def histogram(self, name: str, what: str, *bounds: float) -> Histogram:
        """A histogram with these upper bounds, in the unit of its name."""
        return Histogram(name, what, namespace=PREFIX, registry=self.registry, buckets=bounds)

    def known(self, name: str, what: str) -> Callable[[float], None]:
        """An unlabelled gauge that is absent until the function returned here has set it."""
        gauge = _Known(f"{PREFIX}_{name}", what)
        self.registry.register(gauge)
        return gauge.set


class _Known(Collector):
    """prometheus_client shows an unlabelled gauge as 0 before it is set, which reads as an answer."""

    def __init__(self, name: str, what: str) -> None:
        self._name = name
        self._what = what
        self._value: float | None = None

    def set(self, value: float) -> None:
        self._value = value

    def collect(self) -> Iterator[GaugeMetricFamily]:
        if self._value is not None:
            yield GaugeMetricFamily(self._name, self._what, self._value)
