"""Our own processes as a user runs them: real ones, in a folder of their own, with ports the system chooses."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from gmail_sandbox import RunningSandbox
from tests.servers.dovecot import USER
from tests.servers.warm_start import WarmProcess, may_be_warm, start_warm

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0  # seconds until a wait is given up: generous, for it only matters when something is broken
SELDOM = 0.1  # seconds between two looks of a long wait


def until(true: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Wait until `true` returns something true, and return it.

    The longer it takes, the seldomer it is asked: an answer costs milliseconds here and in the process that is asked.
    """
    started = time.monotonic()
    while not (value := true()):
        waited = time.monotonic() - started
        assert waited < seconds, f"not within {seconds} s: {what}"
        time.sleep(min(0.02 + waited / 20, SELDOM))
    return value


@dataclass
class Running:
    """One started process."""

    process: subprocess.Popen[bytes]
    folder: Path
    stem: str

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM, and the exit code."""
        if self.alive:
            self.process.send_signal(signal.SIGTERM)
        return self.ended()

    def ended(self) -> int:
        """Wait for its end; the exit code. One that does not end says where it hangs."""
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(PATIENCE)
        self.process.send_signal(signal.SIGUSR1)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1)  # for the stacks, which it writes into its log
        raise AssertionError(f"{self.stem} does not end: {self.log()[-20_000:]}")

    def url(self, which: str = "ops_url") -> str:
        path = self.folder / "pids" / f"{self.stem}.json"

        def written() -> str | None:
            assert self.alive, f"{self.stem} ended with {self.process.returncode}: {self.log()[-3000:]}"
            found = json.loads(path.read_text()) if path.exists() else {"pid": None}
            return found[which] if found["pid"] == self.process.pid else None

        return until(written, f"{self.stem} is up")

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.url() + path, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def status(self) -> dict[str, Any]:
        return json.loads(self.get("/status")[1])

    def metric(self, name: str) -> float | None:
        """The sum over all labels; None when there is no such series."""
        lines = [line for line in self.get("/metrics")[1].splitlines() if line.split("{")[0].split(" ")[0] == name]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines) if lines else None

    def log(self) -> str:
        path = self.folder / "logs" / f"{self.stem}.log"
        return path.read_text() if path.exists() else ""


@dataclass
class Place:
    """A folder in which processes run, and their environment."""

    folder: Path
    environment: dict[str, str]
    started: list[Running] = field(default_factory=list)
    python: str | Path = sys.executable
    fresh: bool = field(default_factory=lambda: not may_be_warm())  # each process a Python that was started for it

    def set(self, **settings: object) -> None:
        self.environment |= {name: str(value) for name, value in settings.items()}

    def start(self, *command: str, stem: str) -> Running:
        """Start a process; the first word is a file of the project, or `-m`."""
        words = list(command) if command[0] == "-m" else [str(ROOT / command[0]), *command[1:]]
        (self.folder / "logs").mkdir(exist_ok=True)
        with (self.folder / "logs" / f"{stem}.log").open("ab") as log:
            process = self._warm(words, log) or subprocess.Popen(
                [self.python, *words],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        running = Running(process, self.folder, stem)
        self.started.append(running)
        return running

    def producer(self, *options: str) -> Running:
        return self.start("producer.py", *options, stem="producer")

    def worker(self, number: int = 1, *options: str) -> Running:
        stem = "worker" if number == 1 else f"worker-{number}"
        return self.start("worker.py", "--instance", str(number), *options, stem=stem)

    def web(self) -> Running:
        return self.start("-m", "email_ingestion", "web", stem="web")

    def run(self, *command: str, seconds: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; the first word is a file of the project, or `-m`."""
        words = list(command) if command[0] == "-m" else [str(ROOT / command[0]), *command[1:]]
        if warm := self._warm(words):
            with warm:
                try:
                    out, err = warm.communicate(timeout=seconds)
                finally:
                    warm.kill()
            return subprocess.CompletedProcess(warm.args, warm.returncode, out, err)
        return subprocess.run(
            [self.python, *words],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def _warm(self, words: list[str], log: IO | None = None) -> WarmProcess | None:
        if self.fresh or self.python != sys.executable:
            return None
        return start_warm(words, self.folder, self.environment, log)

    def rows(self, query: str = "SELECT email_id, sha256, size FROM emails") -> list[tuple]:
        return ledger_rows(self.folder, query)

    def close(self) -> None:
        for running in self.started:
            if running.alive:
                running.kill()


def ledger_rows(folder: Path, query: str) -> list[tuple]:
    """What the ledger of processes in this folder holds; nothing while there is none."""
    path = folder / "data" / "email_ingestion.db"
    if not path.exists():
        return []
    with closing(sqlite3.connect(path, timeout=30)) as database:
        try:
            return database.execute(query).fetchall()
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):  # the worker is about to make it
                return []
            raise


@contextmanager
def place(folder: Path, redis_url: str, **settings: object) -> Iterator[Place]:
    """A folder whose processes use this Redis."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ}
    made = Place(folder, kept)
    made.set(REDIS_URL=redis_url, **({"OPS_PORT": 0, "METRICS_PORT": 0, "WEB_PORT": 0} | settings))
    try:
        yield made
    finally:
        made.close()


def gmail_settings(sandbox: RunningSandbox, folder: Path) -> dict[str, object]:
    """Settings for the sandbox, with a token that is already consented."""
    return token_settings(sandbox, folder) | {"IMAP_PORT": sandbox.imap_port, "IMAP_USER": sandbox.user}


def token_settings(sandbox: RunningSandbox, folder: Path) -> dict[str, object]:
    """Settings to get tokens from a sandbox's endpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "token.json"
    path.write_text(json.dumps(token_of(sandbox)))
    return {
        "IMAP_HOST": "127.0.0.1",
        "IMAP_TLS": "false",
        "IMAP_USER": USER,
        "GOOGLE_CLIENT_ID": "sandbox-client",
        "GOOGLE_CLIENT_SECRET": "sandbox-secret",
        "GOOGLE_TOKEN_FILE": path,
        "GOOGLE_TOKEN_URI": sandbox.token_uri,
        "GOOGLE_AUTH_URI": sandbox.auth_uri,
    }


def token_of(sandbox: RunningSandbox) -> dict[str, object]:
    """An authorized user's token that has expired, so that the first use refreshes it."""
    return {
        "token": None,
        "refresh_token": sandbox.refresh_token(),
        "token_uri": sandbox.token_uri,
        "client_id": "sandbox-client",
        "client_secret": "sandbox-secret",
        "scopes": ["https://mail.google.com/"],
        "expiry": "2020-01-01T00:00:00Z",
    }
