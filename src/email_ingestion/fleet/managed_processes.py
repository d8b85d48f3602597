"""Producer and workers of this machine: start what is missing, stop all."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from email_ingestion.daemon import running_pid
from email_ingestion.errors import ConfigurationError
from email_ingestion.fleet.subprocesses import end, lives, spawn
from email_ingestion.settings import SANDBOX_PROFILE, Settings, environment
from email_ingestion.targets import remove_target

START_SECONDS = 30.0
ANSWER_SECONDS = 2.0
FOUNDATION_SECONDS = 10.0
# Stopped last, in this order: the others need them to finish their work.
FOUNDATIONS = ("sandbox", "redis")


@dataclass(frozen=True, slots=True)
class Member:
    """A process of this machine that left a PID file."""

    stem: str
    pid: int | None  # None when the process is dead
    ops_url: str | None


def members(settings: Settings) -> list[Member]:
    """Producer and workers that run here, or died here without taking their PID file away."""
    return [
        Member(path.stem, running_pid(path), _ops_url(path))
        for path in sorted(settings.pid_dir.glob("*.pid"))
        if path.stem.startswith(("producer", "worker"))
    ]


def start(settings: Settings, workers: int, say: Callable[[str], None]) -> None:
    """Start the producer and `workers` workers, each once. Raises OperationFailed or ConfigurationError."""
    if not Path("producer.py").exists():
        raise ConfigurationError("there is no producer.py here: run this in the project's folder")
    running = {member.stem: member.pid for member in members(settings) if member.pid}
    for number in range(workers + 1):
        stem = "producer" if number == 0 else "worker" if number == 1 else f"worker-{number}"
        if stem in running:
            say(f"{stem} is already running, PID {running[stem]}")
            continue
        script = ["producer.py"] if number == 0 else ["worker.py", "--instance", str(number)]
        spawn(
            [sys.executable, *script],
            settings.log_dir / f"{stem}.log",
            partial(_up, settings.pid_dir / f"{stem}.pid"),
            seconds=START_SECONDS,
            environment=environment() | _ports(settings, number),
        )


def stop(settings: Settings, say: Callable[[str], None]) -> bool:
    """Stop everything; returns whether nothing is left running."""
    named = {path.stem: process for path in settings.pid_dir.glob("*.pid") if (process := running(path))}
    loops = {stem: process for stem, process in named.items() if stem not in FOUNDATIONS}
    _end(loops, settings.stop_seconds + 5.0, say)
    for stem in FOUNDATIONS:
        _end({stem: named[stem]} if stem in named else {}, FOUNDATION_SECONDS, say)
    for path in settings.pid_dir.glob("*.pid"):
        if not running(path):
            path.unlink(missing_ok=True)
            remove_target(path.stem)
    SANDBOX_PROFILE.unlink(missing_ok=True)
    if not named:
        say("nothing was running")
    return not any(lives(process) for process in named.values())


def _end(processes: dict[str, psutil.Process], seconds: float, say: Callable[[str], None]) -> None:
    killed = end(processes.values(), seconds)
    for stem, process in sorted(processes.items()):
        say(f"{stem} {'had to be killed' if process in killed else 'stopped'}")


def running(path: Path) -> psutil.Process | None:
    """The process behind a PID file, if it is that process and lives."""
    pid = _redis_pid(path) if path.stem == "redis" else running_pid(path)
    if pid is None:
        return None
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid)
    return None


def ask(url: str, seconds: float = ANSWER_SECONDS) -> dict[str, Any] | None:
    """The JSON under a URL of one of our processes, whatever its HTTP status; None when it does not answer."""
    try:
        with urllib.request.urlopen(url, timeout=seconds) as answer:  # noqa: S310 - our own loopback URL
            return _json(answer.read())
    except urllib.error.HTTPError as error:
        return _json(error.read())
    except OSError:
        return None


def _json(body: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(body)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _up(pid_file: Path) -> bool:
    url = _ops_url(pid_file)
    return bool(running_pid(pid_file) and url and ask(f"{url}/livez"))


def _ops_url(pid_file: Path) -> str | None:
    try:
        found = json.loads(pid_file.with_suffix(".json").read_text())
        # A killed process leaves both files behind; a new one writes the PID first.
        return str(found["ops_url"]) if found["pid"] == int(pid_file.read_text()) else None
    except (OSError, ValueError, KeyError):
        return None


def _ports(settings: Settings, number: int) -> dict[str, str]:
    """Where OPS_PORT and METRICS_PORT are set, the workers' are the numbers after them."""
    chosen = {"OPS_PORT": settings.ops_port, "METRICS_PORT": settings.metrics_port}
    return {name: str(port + number if port else port) for name, port in chosen.items() if port is not None}


def _redis_pid(path: Path) -> int | None:
    """redis-server takes no lock of ours: its name must do."""
    try:
        pid = int(path.read_text())
        name = psutil.Process(pid).name()
    except (OSError, ValueError, psutil.Error):
        return None
    return pid if name.startswith(("redis", "valkey")) else None
