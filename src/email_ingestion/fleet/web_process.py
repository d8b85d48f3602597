"""The web process of this machine: where it answers, how it is started beside the others, and what is said of it.

Producer and workers do without it. So what keeps it from starting with them, such as a port that another program has,
is a sentence and no failure of theirs. One that ran and is dead should run, as they should.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from email_ingestion.daemon import read_pid, running_pid
from email_ingestion.errors import ConfigurationError
from email_ingestion.fleet.subprocesses import DetachedProcess, free_port
from email_ingestion.ops.status_records import Peer
from email_ingestion.settings import SANDBOX_PROFILE, Settings, environment

STEM = "web"
START_SECONDS = 20.0
POLL_SECONDS = 0.1
ANSWER_SECONDS = 5.0
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


@dataclass(frozen=True, slots=True)
class WebProcess:
    """The web process of this machine, which left a PID file; `state` is ready, starting, no answer or dead."""

    pid: int | None
    url: str | None
    state: str

    @property
    def serves(self) -> bool:
        """Whether it answers."""
        return self.state == "ready"

    def peer(self) -> Peer:
        """Return it as the judgement of what should run and does not takes it."""
        return Peer(STEM, STEM, self.pid, self.state != "dead", self.serves, None, None, pid_file=True)


def find_web(settings: Settings) -> WebProcess | None:
    """Return the web process; None where it was never started, or was stopped."""
    pid_file = settings.pid_dir / f"{STEM}.pid"
    if (pid := running_pid(pid_file)) is None:
        last = read_pid(pid_file)
        return WebProcess(last, None, "dead") if last else None
    url = web_url(settings.pid_dir)
    return WebProcess(pid, url, "starting" if url is None else "ready" if _answers(url) else "no answer")


def _answers(url: str) -> bool:
    import httpx  # noqa: PLC0415 - slow to load

    try:
        # An own process, whose certificate may be for another name; nothing is told it and nothing of it is believed.
        return httpx.get(f"{url}/healthz", timeout=ANSWER_SECONDS, trust_env=False, verify=False).is_success  # noqa: S501
    except httpx.HTTPError:
        return False


def wait_until_served(settings: Settings, process: DetachedProcess | None) -> str:
    """Wait until the web process listens, which `process` is if it was just started; return why it does not, or ''."""
    deadline = time.monotonic() + START_SECONDS
    while not web_url(settings.pid_dir):
        if process and process.exit_code() is not None:
            return process.last_line()
        if time.monotonic() > deadline:
            return f"it is not up after {START_SECONDS:.0f} s; see logs/{STEM}.log"
        time.sleep(POLL_SECONDS)
    return ""


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
        if problem := self._problem or wait_until_served(self._settings, self._process):
            return f"web did not start: {problem}; producer and workers do without it"
        return f"web: {web_url(self._settings.pid_dir)}"

    def end(self) -> None:
        """End it, if this start began it: what it shows did not come up."""
        if self._process:
            self._process.end(POLL_SECONDS * 50)
