"""Our processes running, and what they use: CPU and memory of a process with its children."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil

from bench.rounds import Failed
from bench.venvs import product
from tests.servers.processes import Place, place

MIB = 1024 * 1024


def used(pid: int) -> float:
    """CPU seconds of a process and its children so far."""
    total = 0.0
    for process in _family(pid):
        times = process.cpu_times()
        total += times.user + times.system
    return total


def peaks(pid: int) -> tuple[float, float]:
    """The most memory in MiB that the process has had, and that it and its children have had, each at its own time."""
    each = [_peak(process.pid) for process in _family(pid)]
    return each[0], sum(each)


def _family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _peak(pid: int) -> float:
    """0 for one that has ended: while nobody has waited for it, it is there without memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def wait(true: Callable[[], bool], seconds: float, what: str, every: float = 0.05) -> None:
    """Wait until `true`; raises Failed."""
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            raise Failed(f"not within {seconds:.0f} s: {what}")
        time.sleep(every)


class Rows:
    """The table `emails` of a place's database."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "data" / "email_ingestion.db"

    def count(self) -> int:
        """How many rows there are."""
        return int(self._one("SELECT count(*) FROM emails"))

    def last(self) -> int:
        """The number of the newest row; quicker than counting."""
        return int(self._one("SELECT max(rowid) FROM emails") or 0)

    def _one(self, query: str) -> int:
        if not self._path.exists():
            return 0
        with closing(sqlite3.connect(self._path, timeout=30)) as database:
            try:
                found = database.execute(query).fetchone()
            except sqlite3.OperationalError:  # the worker is about to make the table
                return 0
        return int(found[0] or 0)

    def bytes(self) -> int:
        """How large the database is on the disk."""
        return sum(path.stat().st_size for path in self._path.parent.glob("email_ingestion.db*"))


@contextmanager
def installed(folder: Path, redis_url: str, **settings: object) -> Iterator[Place]:
    """A folder whose processes have what users install."""
    with place(folder, redis_url, **settings) as made:
        made.python = product()
        yield made
