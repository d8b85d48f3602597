"""How much memory a process may use before the system ends it, and how much counts against that.

The limit of its control group (MemoryMax of a unit, the limit of a container) or of one above it, and that of its
address space (`ulimit -v`); of several, the one that is nearest. Where there is none, nothing is told.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from email_ingestion.ops.metric_factory import PREFIX
from email_ingestion.process_limits import control_groups

UNLIMITED = 1 << 60  # control groups of version 1 write a number near 2^63 for none


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes that count against a limit, and the limit."""

    used: int
    limit: int


class MemoryGauges(Collector):
    """The memory limit that is nearest, read at a scrape; absent where there is none."""

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; the registry calls it at a scrape."""
        nearest = memory_use()
        if nearest is None:
            return
        documentation = "Memory that counts against the nearest limit; absent where there is none."
        yield GaugeMetricFamily(f"{PREFIX}_memory_used_bytes", documentation, nearest.used)
        documentation = "Memory at which the system ends the process; absent where there is no limit."
        yield GaugeMetricFamily(f"{PREFIX}_memory_limit_bytes", documentation, nearest.limit)


def memory_use(process: Path = Path("/proc/self"), groups: Path = Path("/sys/fs/cgroup")) -> MemoryUse | None:
    """Return the nearest limit of this process; None when it has none, or the system does not tell."""
    found = [*_control_groups(process, groups), *_address_space()]
    return max(found, key=lambda each: each.used / each.limit, default=None)


def _address_space() -> Iterator[MemoryUse]:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if 0 < limit < UNLIMITED:
        yield MemoryUse(psutil.Process().memory_info().vms, limit)


def _control_groups(process: Path, groups: Path) -> Iterator[MemoryUse]:
    version_2 = ("memory.max", "memory.current", "inactive_file")
    version_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    for folder, is_version_2 in control_groups("memory", process, groups):
        if found := _limit_of(folder, *(version_2 if is_version_2 else version_1)):
            yield found


def _limit_of(folder: Path, limit: str, usage: str, cache: str) -> MemoryUse | None:
    """Read one group; files that the kernel may drop at any time do not count."""
    try:
        allowed, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if not allowed.isdigit() or not 0 < int(allowed) < UNLIMITED:  # "max"
        return None
    return MemoryUse(max(0, used - int(stat.get(cache, 0))), int(allowed))
