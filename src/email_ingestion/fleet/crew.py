"""Several workers under one command: starts each as a process of its own, starts again what crashed, ends with all.

A worker that refuses to start ends them all: what an operator must mend is not mended by trying again.
"""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

from email_ingestion.daemon import StopSignal, handle_signals
from email_ingestion.settings import Settings, environment

AGAIN_SECONDS = 1.0  # before a crashed one is started again
LOOK_SECONDS = 0.1
FINAL = frozenset([2, 64, 78])  # exit codes for an operator
_PR_SET_PDEATHSIG = 1  # prctl(2)


class Crew:
    """`count` workers from number `first` on, each with its own ports, files and name, as `--instance` gives them.

    Once `stop` is requested all are ended as SIGTERM does, and none is started again.
    """

    def __init__(self, settings: Settings, first: int, count: int, options: Sequence[str], stop: StopSignal) -> None:
        self._settings = settings
        self._first = first
        self._numbers = range(first, first + count)
        self._options = options
        self._stop = stop

    def run(self) -> int:
        """Return the worst exit code when all have ended."""
        running = {number: self._start(number) for number in self._numbers}
        due: dict[int, float] = {}
        codes: list[int] = []
        stopping = False
        while running or due:
            if self._stop.is_set() and not stopping:
                stopping = True
                due.clear()
                for child in running.values():
                    child.terminate()
            for number, code in [(number, child.poll()) for number, child in running.items()]:
                if code is None:
                    continue
                del running[number]
                if code in FINAL:
                    self._stop.request(f"worker {number} refused to start")
                if code == 0 or code in FINAL or stopping:
                    codes.append(abs(code))
                else:
                    due[number] = time.monotonic() + AGAIN_SECONDS
            for number in [number for number, then in due.items() if then <= time.monotonic()]:
                del due[number]
                running[number] = self._start(number)
            self._stop.wait(LOOK_SECONDS) if not stopping else time.sleep(LOOK_SECONDS)
        return max(codes, default=0)

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, sys.argv[0], "--instance", str(number), *self._options]
        ports = {"OPS_PORT": self._settings.ops_port, "METRICS_PORT": self._settings.metrics_port}
        chosen = {
            name: str(port + number - self._first if port else port) for name, port in ports.items() if port is not None
        }
        return subprocess.Popen(command, env=environment() | chosen, preexec_fn=_end_with_parent())  # noqa: PLW1509 - see there


def _end_with_parent() -> Callable[[], None] | None:
    """A parent that is killed takes them along (Linux): orphans would hold their names against the next ones."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up here: after the fork a thread's lock may be held for ever
    return partial(prctl, _PR_SET_PDEATHSIG, int(signal.SIGTERM))


def run_crew(settings: Settings, first: int, count: int, options: Sequence[str]) -> int:
    """Run workers until SIGTERM or SIGINT, or until all have ended; returns the worst exit code."""
    stop = StopSignal()
    handle_signals(stop, lambda _: None)
    return Crew(settings, first, count, options, stop).run()
