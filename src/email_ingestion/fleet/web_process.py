"""The web process of this machine: where it answers, how it is started beside the others, and what is said of it.

Producer and workers do without it. So whatever is wrong with it, such as a port that another program has, is a sentence
and never a failure.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from email_ingestion.daemon import read_pid, running_pid
from email_ingestion.errors import ConfigurationError
from email_ingestion.fleet.subprocesses import DetachedProcess, free_port
from email_ingestion.settings import SANDBOX_PROFILE, Settings, environment

STEM = "web"
START_SECONDS = 20.0
POLL_SECONDS = 0.1
PROGRAMS = ("email-ingestion", "email_ingestion")  # the console script, and `python -m`


def web_url(pid_dir: Path) -> str | None:
    """Return the address of the web process of this machine; None when it does not run."""
    pid_file = pid_dir / f"{STEM}.pid"
    try:
        found = json.loads(pid_file.with_suffix(".json").read_text())
        return str(found["web_url"]) if found["pid"] == running_pid(pid_file) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_web(words: Sequence[str]) -> bool:
    """Return whether a command line is that of a web process."""
    names = [Path(word).name for word in words[:4]]
    return any(first in PROGRAMS and second == STEM for first, second in pairwise(names)) and words[-1] == STEM


def describe_web(settings: Settings) -> str | None:
    """Return one line about the web process; None where it was never started, or stopped."""
    pid_file = settings.pid_dir / f"{STEM}.pid"
    if url := web_url(settings.pid_dir):
        return f"web: {url} (PID {running_pid(pid_file)})"
    if running_pid(pid_file):
        return f"web: it starts (PID {running_pid(pid_file)})"
    last = read_pid(pid_file)
    return f"web: it died (PID {last}); mail flows without it: ./scripts/start.sh starts it again" if last else None


class WebStart:
    """The start of the web process, unless it runs: begun at once, waited for later."""

    def __init__(self, settings: Settings, *, runs: bool) -> None:
        """Begin it, unless it `runs`."""
        self._settings = settings
        self._process: DetachedProcess | None = None
        self._problem = ""
        if runs:
            if running_pid(settings.pid_dir / f"{STEM}.pid") is None:
                self._problem = "it runs already, without its PID file: ./scripts/stop.sh ends it"
            return
        command = [sys.executable, "-m", "email_ingestion", STEM]
        try:
            self._process = DetachedProcess(command, settings.log_dir / f"{STEM}.log", self._environment())
        except (ConfigurationError, OSError) as error:
            self._problem = str(error)

    def _environment(self) -> dict[str, str]:
        """Return its environment; a trial takes another port where the usual one is taken."""
        port = self._settings.web_port
        if SANDBOX_PROFILE.exists() and port and free_port(port) != port:
            return environment() | {"WEB_PORT": "0"}
        return environment()

    def wait(self) -> str:
        """Return one line that says where it answers, or why it does not."""
        deadline = time.monotonic() + START_SECONDS
        while not (url := web_url(self._settings.pid_dir)):
            if self._process and self._process.exit_code() is not None:
                self._problem = self._process.last_line()
            elif time.monotonic() > deadline:
                self._problem = self._problem or f"it is not up after {START_SECONDS:.0f} s; see logs/{STEM}.log"
            if self._problem:
                return f"web did not start: {self._problem}; producer and workers do without it"
            time.sleep(POLL_SECONDS)
        return f"web: {url}"

    def end(self) -> None:
        """End it, if this start began it: what it shows did not come up."""
        if self._process:
            self._process.end(POLL_SECONDS * 50)
