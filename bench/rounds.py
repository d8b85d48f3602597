"""Rounds in which everybody runs once, so that a machine with other work hurts all alike; the middle one counts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from resource import struct_rusage
from statistics import median

ROOT = Path(__file__).resolve().parents[1]


class Failed(Exception):
    """A contender did not do what it was asked for; the text says why."""


@dataclass(frozen=True, slots=True)
class Run:
    """What one run took; `cpu` are seconds of all processes of the contender."""

    count: int
    seconds: float
    cpu: float
    peak: int = 0  # bytes of memory of the first process

    @property
    def rate(self) -> float:
        """Messages in a second."""
        return self.count / self.seconds

    @property
    def cost(self) -> float:
        """CPU milliseconds for a message."""
        return 1000 * self.cpu / self.count


@dataclass(frozen=True, slots=True)
class Medians:
    """The middle of a contender's runs, each quantity by itself."""

    name: str
    rate: float
    cost: float
    spread: float  # of the rate: (largest - smallest) / median

    @classmethod
    def of(cls, name: str, runs: Sequence[Run]) -> Medians:
        """Of the runs of one contender."""
        rates = [run.rate for run in runs]
        return cls(name, median(rates), median(run.cost for run in runs), (max(rates) - min(rates)) / median(rates))


Say = Callable[[str], None]


def race(
    contenders: Mapping[str, Callable[[], Run]], rounds: int, say: Say
) -> tuple[dict[str, Medians], dict[str, str]]:
    """Run all in turn, `rounds` times; returns the medians, and why somebody dropped out."""
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    out: dict[str, str] = {}
    for number in range(rounds):
        for name, contender in contenders.items():
            if name in out:
                continue
            try:
                run = contender()
            except (Failed, subprocess.TimeoutExpired) as error:
                out[name] = str(error).strip().splitlines()[-1][:200]
                say(f"  {name}: dropped out: {out[name]}")
                continue
            runs[name].append(run)
            say(f"  round {number + 1}: {name:34} {run.rate:9,.0f}/s {run.cost:8.3f} ms CPU")
    return {name: Medians.of(name, found) for name, found in runs.items() if found and name not in out}, out


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that has ended well."""

    output: str
    seconds: float
    cpu: float
    peak: int


def finish(command: Sequence[str | Path], *, environment: Mapping[str, str], cwd: Path, patience: float) -> Ended:
    """Run a command to its end; raises Failed unless it exits with 0. Its CPU is that of its children as well."""
    with (cwd / "output").open("w+b") as output, (cwd / "errors").open("w+b") as errors:
        started = time.monotonic()
        process = subprocess.Popen(
            [str(word) for word in command], cwd=cwd, env=dict(environment), stdout=output, stderr=errors
        )
        status, usage = _wait(process, started + patience)
        seconds = time.monotonic() - started
        output.seek(0)
        errors.seek(0)
        if status != 0:
            said = (errors.read() or b"nothing on stderr").decode("utf-8", "replace").strip()
            raise Failed(f"{Path(command[0]).name} ended with {status}: {said.splitlines()[-1]}")
        kilobytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return Ended(output.read().decode(), seconds, usage.ru_utime + usage.ru_stime, kilobytes)


def _wait(process: subprocess.Popen[bytes], until: float) -> tuple[int, struct_rusage]:
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, usage
        if time.monotonic() > until:
            process.kill()
            os.wait4(process.pid, 0)
            raise Failed("it was not done in time")
        time.sleep(0.005)
