"""The limits of this process that the system sets, and what an operator must know of the one that holds it up.

Those of processes and threads, and the control groups (a unit of systemd, a container) that any limit may be of.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROCESS = Path("/proc/self")
GROUPS = Path("/sys/fs/cgroup")


def control_groups(controller: str, process: Path = PROCESS, groups: Path = GROUPS) -> Iterator[tuple[Path, bool]]:
    """Yield the control group of this process and all above it, nearest first, and whether they are of version 2.

    A container sees its own group as the root. There are none where the system is no Linux.
    """
    try:
        lines = (process / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = groups / controller if controllers else groups
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if root in (folder, *folder.parents):
                yield folder, not controllers


def describe_thread_limits(process: Path = PROCESS, groups: Path = GROUPS) -> str:
    """Return the limits that may be why no thread and no process can be started, and how much of each is used."""
    found = []
    for folder, _ in control_groups("pids", process, groups):
        with suppress(OSError):  # the root has no limit
            limit, used = ((folder / name).read_text().strip() for name in ("pids.max", "pids.current"))
            if limit != "max":
                found.append(f"pids.max of {folder} is {limit}, and {used} are there")
    return "; ".join([*found, *_user_limits()]) or "look for limits of processes and memory"


def _user_limits() -> Iterator[str]:
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415 - Windows has none

    for option, resource_limit, what in (
        ("-u", resource.RLIMIT_NPROC, ""),
        ("-v", resource.RLIMIT_AS, " bytes of memory"),
    ):
        soft, _ = resource.getrlimit(resource_limit)
        if soft != resource.RLIM_INFINITY:
            yield f"ulimit {option} is {soft}{what}"
