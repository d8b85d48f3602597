"""Faults of our own processes, of sinks and of operators. Each begins when its context is entered and ends with it.

They overlap, so none may assume that what it touches is well: servers and processes count the faults that last.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import psutil

from bench.fault_schedules.servers import DOWN, FROZEN, Troubled
from bench.fault_schedules.stack import SIGNALS, OurProcess, Stack

PARSER = "parsing.parser_process"
AGAIN_SECONDS = 0.7  # between two blows of a fault that is made of many
DAY = 86_400
CLOCKS = {"day_ahead": DAY, "day_behind": -DAY, "minutes_ahead": 300, "minutes_behind": -300}


@dataclass(frozen=True, slots=True)
class Case:
    """One fault that is about to happen."""

    stack: Stack
    manner: str
    rng: Random


@contextmanager
def lasting(thing: Troubled, fault: str) -> Iterator[None]:
    """Let a fault of a server or process last."""
    thing.begin(fault)
    try:
        yield
    finally:
        thing.end(fault)


# -- our own processes


@contextmanager
def producer_killed(case: Case) -> Iterator[None]:
    """SIGKILL."""
    with lasting(case.stack.processes["producer"], DOWN):
        yield


@contextmanager
def worker_killed(case: Case) -> Iterator[None]:
    """SIGKILL of any worker: what it was handing over may be handed over again."""
    case.stack.doubt_unmarked(time.monotonic() + 0.5)
    with lasting(case.rng.choice(case.stack.workers), DOWN):
        yield


@contextmanager
def producer_frozen(case: Case) -> Iterator[None]:
    """SIGSTOP."""
    with lasting(case.stack.processes["producer"], FROZEN):
        yield


@contextmanager
def worker_frozen(case: Case) -> Iterator[None]:
    """SIGSTOP of any worker, for longer than its lease or not."""
    case.stack.doubt_unmarked(time.monotonic())
    begun = time.monotonic()
    try:
        with lasting(case.rng.choice(case.stack.workers), FROZEN):
            yield
    finally:
        case.stack.doubt(begun, time.monotonic() + 1)  # what was in its hands comes to an end after it


@contextmanager
def signalled(case: Case) -> Iterator[None]:
    """Signals that end nothing."""
    with _again_and_again(lambda: case.rng.choice(list(case.stack.processes.values())).signal(SIGNALS[case.manner])):
        yield


@contextmanager
def parser_killed(case: Case) -> Iterator[None]:
    """As the kernel does when memory is short."""
    with _again_and_again(lambda: _end_parsers(case.stack)):
        yield


@contextmanager
def parser_cannot_start(case: Case) -> Iterator[None]:
    """No process can be started by a worker, or no descriptor is left, and its parser is gone."""
    worker = case.rng.choice(case.stack.workers)
    limit = _pids_limit if case.manner == "pids" else _descriptor_limit
    with limit(worker) if worker.is_up() else nullcontext():  # a start without any ends, and comes again
        _end_parsers(case.stack)
        yield


@contextmanager
def _descriptor_limit(worker: OurProcess) -> Iterator[None]:
    pid = worker.pid
    try:
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")), limits[1]))
    except OSError:  # it is down
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


@contextmanager
def _pids_limit(worker: OurProcess) -> Iterator[None]:
    group = Path(f"/sys/fs/cgroup/pids/fault-schedules-{os.getpid()}-{time.monotonic_ns()}")
    try:
        group.mkdir()
        (group / "cgroup.procs").write_text(str(worker.pid))
        threads = len(os.listdir(f"/proc/{worker.pid}/task"))
        (group / "pids.max").write_text(str(threads))
    except OSError:  # no such control group here, or the worker is down: descriptors do as well
        with _descriptor_limit(worker):
            yield
        return
    try:
        yield
    finally:
        (group / "pids.max").write_text("max")
        for pid in (group / "cgroup.procs").read_text().split():
            with suppress(OSError):
                (group.parent / "cgroup.procs").write_text(pid)
        with suppress(OSError):
            group.rmdir()


@contextmanager
def clock(case: Case) -> Iterator[None]:
    """The workers' wall clock is wrong."""
    assert case.stack.clock  # noqa: S101 - else it is not drawn
    case.stack.clock.set(
        {"day_ahead": DAY, "day_behind": -DAY, "minutes_ahead": 300, "minutes_behind": -300}[case.manner]
    )
    yield
    case.stack.clock.set(0)


@contextmanager
def _again_and_again(blow: Callable[[], None]) -> Iterator[None]:
    over = threading.Event()

    def go_on() -> None:
        blow()
        while not over.wait(AGAIN_SECONDS):
            blow()

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    yield
    over.set()
    thread.join()


def _end_parsers(stack: Stack) -> None:
    for worker in stack.workers:
        with suppress(psutil.Error):
            for child in psutil.Process(worker.pid).children():
                if any(PARSER in word for word in child.cmdline()):
                    os.kill(child.pid, signal.SIGKILL)


# -- sinks


@contextmanager
def webhook(case: Case) -> Iterator[None]:
    """The receiver answers otherwise."""
    case.stack.webhook.begin(case.manner)
    yield
    case.stack.webhook.end(case.manner)


@contextmanager
def function(case: Case) -> Iterator[None]:
    """The function does something else."""
    case.stack.function.begin(case.manner)
    yield
    case.stack.function.end(case.manner)


# -- operators


@contextmanager
def dead_letters(case: Case) -> Iterator[None]:
    """Two operators work at the dead letters at once; some mail of such a schedule ends the parser."""
    over = threading.Event()

    def work(*words: str) -> None:
        while not over.is_set():
            with suppress(subprocess.TimeoutExpired):
                case.stack.command("dlq", *words, seconds=60)

    operators = [
        threading.Thread(target=work, args=words, daemon=True)
        for words in (("replay", "--all"), ("purge", "--all", "--yes"))
    ]
    for operator in operators:
        operator.start()
    yield
    over.set()
    for operator in operators:
        operator.join()


@contextmanager
def paused(case: Case) -> Iterator[None]:
    """An operator pauses workers or producer and forgets to resume: the order ends by itself."""
    with suppress(subprocess.TimeoutExpired):
        case.stack.command("pause", case.manner, "--ttl", "5s", seconds=30)
    yield
