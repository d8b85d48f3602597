"""The live stack that a drill breaks: Gmail sandbox with TLS, Redis with AOF, producer, workers, and arriving mail.

It lies in a folder that looks like the project's, so that every command of a runbook can be typed there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import redis

from bench.crash_matrix.law import Copy, Found
from email_ingestion.errors import PermanentError
from email_ingestion.records import email_id
from email_ingestion.stream import Keys
from email_ingestion.stream.codec import decode
from gmail_sandbox import RunningSandbox, SandboxSettings, running_sandbox
from gmail_sandbox.cli import write_atomically
from tests.drills.addresses import Addresses
from tests.drills.certificate import make_certificate
from tests.drills.load import Load
from tests.drills.redis_server import DrillRedis
from tests.drills.shims import write_shims
from tests.servers.processes import ROOT, ledger_rows, until
from tests.servers.prometheus import Notified, Prometheus, running_alertmanager, running_prometheus

KEYS = Keys()
LINKED = ("src", "producer.py", "worker.py", "README.md", "docs", "deploy")
COPIED = ("config", "scripts", "pyproject.toml", "requirements.lock")
# What differs from the defaults, so that a drill takes seconds; docs/drills.md names them.
PACE = {
    "CB_RECOVERY_TIMEOUT": 1,
    "CB_FAIL_MAX": 2,
    "IMAP_POLL_SECONDS": 1,
    "IMAP_TIMEOUT_SECONDS": 2,
    "WORKER_LEASE_SECONDS": 2,
    "WORKER_MAX_RETRIES": 2,
}
LOWERED = ("freshness_seconds", "sync_silence_seconds", "pending_seconds")


@dataclass(frozen=True, slots=True)
class Done:
    """A command that ended; `output` is what it wrote to both channels."""

    rc: int | None  # None: it was still running when its time was over
    output: str


class World:
    """What a scenario and a drill hold. Processes are called `producer`, `worker`, `worker-2`."""

    def __init__(
        self,
        folder: Path,
        addresses: Addresses,
        sandbox: RunningSandbox,
        settings: Mapping[str, object],
        environment: Mapping[str, str],
    ) -> None:
        self.addresses = addresses
        self.sandbox = sandbox
        self.folder = folder / "project"
        self.redis = DrillRedis(addresses, folder / "redis")
        self.load = Load(sandbox)
        self.settings = dict(settings)
        self.environment = dict(environment)
        self.prometheus: Prometheus | None = None
        self.notified: Notified | None = None
        self._started: list[subprocess.Popen[bytes]] = []
        self._exports = folder / "exported.sh"
        self._outputs = folder / "outputs"
        self._outputs.mkdir()
        self._over = threading.Event()
        self._undertaker = threading.Thread(target=self._bury, name="undertaker", daemon=True)

    # -- processes

    def write_settings(self, **changes: object) -> None:
        """Write `.env`; what already runs keeps what it read."""
        self.settings |= changes
        lines = [f"{name}={value}\n" for name, value in self.settings.items() if value is not None]
        (self.folder / ".env").write_text("".join(lines))

    def start(self, stem: str) -> None:
        """Start a process of ours; `ready` says when it is."""
        number = _number(stem)
        command = ["worker.py", *(("--instance", str(number)) if number > 1 else ())] if number else ["producer.py"]
        (self.folder / "logs").mkdir(exist_ok=True)
        ports = {} if self.addresses.literal else self._ports(number)
        with (self.folder / "logs" / f"{stem}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=self.folder,
                env=self.environment | ports,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._started.append(process)

    def pid(self, stem: str) -> int | None:
        """The PID that its file says, whether it lives or not."""
        with suppress(OSError, ValueError):
            return int((self.folder / "pids" / f"{stem}.pid").read_text())
        return None

    def alive(self, stem: str) -> bool:
        pid = self.pid(stem)
        with suppress(psutil.NoSuchProcess):
            return pid is not None and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        return False

    def kill(self, stem: str) -> None:
        """SIGKILL, as the kernel does when memory is short."""
        pid = self.pid(stem)
        assert pid, f"{stem} has no PID file"
        os.kill(pid, signal.SIGKILL)
        until(lambda: not self.alive(stem), f"{stem} is dead")

    def pids(self) -> dict[str, int | None]:
        return {path.stem: self.pid(path.stem) for path in (self.folder / "pids").glob("*.pid")}

    def log(self, stem: str) -> Path:
        return self.folder / "logs" / f"{stem}.log"

    # -- what it says of itself

    def get(self, path: str, stem: str = "producer") -> tuple[int, str] | None:
        """Status and body; None when nobody listens."""
        try:
            with urllib.request.urlopen(f"{self.url(stem)}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return None

    def url(self, stem: str = "producer") -> str:
        return f"http://127.0.0.1:{self.addresses.ops + _number(stem)}"

    def status(self, stem: str = "producer") -> dict[str, Any]:
        """Its /status; empty when nobody listens."""
        answer = self.get("/status", stem)
        return json.loads(answer[1]) if answer else {}

    def metric(self, name: str, stem: str = "producer", /, **labels: str) -> float | None:
        """The sum over the series with these labels; None when there is none."""
        answer = self.get("/metrics", stem)
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        lines = [
            line
            for line in (answer[1] if answer else "").splitlines()
            if line.split("{")[0].split(" ")[0] == name and all(pair in line for pair in wanted)
        ]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines) if lines else None

    def ready(self, stem: str) -> tuple[int, str]:
        """HTTP status and the word beside it; (0, "") when nobody listens."""
        answer = self.get("/ready", stem)
        return (answer[0], json.loads(answer[1])["status"]) if answer else (0, "")

    def well(self, *stems: str) -> bool:
        """Whether these processes are ready, nothing is degraded and no breaker is open."""
        return all(
            self.ready(stem) == (200, "ready") and self.metric("email_ingestion_circuit_breaker_state", stem) == 0
            for stem in stems
        )

    # -- commands

    def shell(self, text: str, *, seconds: float = 30.0, stdin: str = "") -> Done:
        """Type a command into a bash in the project's folder; what earlier ones exported is still there."""
        process, output = self.open_shell(text, stdin=stdin)
        try:
            rc: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            rc = None
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return Done(rc, output.read_text(errors="replace"))

    def open_shell(self, text: str, *, stdin: str = "") -> tuple[subprocess.Popen[bytes], Path]:
        """Type a command and do not wait for it; its output grows in the file."""
        memory = f"trap 'drill_rc=$?; export -p >{self._exports}; exit $drill_rc' EXIT\n. {self._exports} 2>/dev/null\n"
        output = self._outputs / f"{len(list(self._outputs.iterdir()))}.txt"
        # A file, not a pipe: what a command leaves running in the background must not keep us waiting.
        with output.open("wb") as channel:
            process = subprocess.Popen(
                ["bash", "-c", memory + self.addresses(text)],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=channel,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(process)
        assert process.stdin
        with suppress(BrokenPipeError):
            process.stdin.write(stdin.encode())
        process.stdin.close()
        return process, output

    # -- mail

    def rows(self, query: str = "SELECT email_id, sha256 FROM emails") -> list[tuple[Any, ...]]:
        """What the ledger holds; nothing while there is none."""
        return ledger_rows(self.folder, query)

    def in_flight(self) -> int:
        """Messages that are in the mailbox and not yet in the ledger."""
        return len(self.load.delivered) - len(self.rows())

    def settled(self) -> bool:
        """Whether every message is in the ledger, a dead letter, or purged, and nothing is left in the stream."""
        with suppress(redis.RedisError), self.redis.client() as client:
            dead = [copy.email_id for copy in _entries(client, KEYS.dlq)]
            done = {*dead, *(row[0] for row in self.rows()), *(row[0] for row in self.purged())}
            return not client.xlen(KEYS.stream) and done >= self.load.delivered.keys()
        return False

    def purged(self) -> list[tuple[Any, ...]]:
        return self.rows("SELECT email_id FROM purged")

    def look(self) -> Found:
        """What is where, for the law. What an operator purged counts as dead."""
        with self.redis.client() as client:
            dead, queued = (list(_entries(client, key)) for key in (KEYS.dlq, KEYS.stream))
        known = self.load.delivered
        given_up = [Copy(identity, known.get(identity, "")) for (identity,) in self.purged()]
        return Found(
            mailbox=dict(known),
            seen=[email_id("default", each.msgid, "") for each in self.sandbox.messages() if "\\Seen" in each.flags],
            database=[Copy(*row) for row in self.rows()],
            dead=dead + given_up,
            queued=queued,
        )

    # -- life

    def open(self) -> None:
        self._undertaker.start()

    def close(self) -> None:
        self.load.stop()
        self._over.set()
        self._undertaker.join(5)
        for path in (self.folder / "pids").glob("*.pid"):
            with suppress(OSError, TypeError):
                os.kill(self.pid(path.stem) or 0, signal.SIGKILL) if self.alive(path.stem) else None
        for process in self._started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        with suppress(AssertionError):
            self.redis.signal(signal.SIGKILL)

    def _bury(self) -> None:
        """Take note of ended children, so that `ps` does not show them any more."""
        while not self._over.wait(0.05):
            for process in list(self._started):
                process.poll()

    def _ports(self, number: int) -> dict[str, str]:
        return {
            "OPS_PORT": str(self.addresses.ops + number),
            "METRICS_PORT": str(self.addresses.metrics + number),
        }


def _entries(client: redis.Redis, key: str) -> Iterator[Copy]:
    """The messages of a key. What is no mail, or a sink's debt for mail that the ledger has, is none of them."""
    for _, fields in client.xrange(key):
        with suppress(PermanentError):
            message = decode(fields)
            if not message.only_sink:
                yield Copy(message.envelope.email_id, message.envelope.sha256)


def _number(stem: str) -> int:
    """0 for the producer, k for the k-th worker: what is added to the first port."""
    role, _, number = stem.partition("-")
    return int(number or 1) if role == "worker" else 0


@contextmanager
def running_world(
    folder: Path, addresses: Addresses, settings: Mapping[str, object], python_path: str = ""
) -> Iterator[World]:
    """Sandbox and Redis up, a project folder, settings written; no process of ours runs yet, no mail is there."""
    with ExitStack() as stack:
        certificate = make_certificate(folder)
        sandbox = stack.enter_context(
            running_sandbox(SandboxSettings(imap_port=addresses.imap, tls_certificate=certificate))
        )
        project = _project(folder)
        bin_folder = write_shims(folder / "bin", addresses, folder / "redis")
        environment = _environment(addresses, bin_folder, certificate, python_path)
        made = World(folder, addresses, sandbox, _settings(addresses, sandbox) | dict(settings), environment)
        made.write_settings()
        write_atomically(project / "data" / "token.json", sandbox.authorized_user_info())
        stack.callback(made.close)
        made.open()
        made.redis.start()
        yield made


@contextmanager
def watched(world: World, folder: Path, times: float) -> Iterator[None]:
    """Prometheus and Alertmanager with our rules, in which time runs so much faster."""
    ports = world.addresses
    with (
        running_alertmanager(folder / "alertmanager", times=times, port=ports.alertmanager) as (port, world.notified),
        running_prometheus(
            folder / "prometheus",
            world.folder / "data" / "targets",
            times=times,
            lowered=LOWERED,
            alertmanager=port,
            port=ports.prometheus,
        ) as world.prometheus,
    ):
        yield


def _project(folder: Path) -> Path:
    """A folder like the project's: what it is made of, and nothing that a run left."""
    project = folder / "project"
    project.mkdir(parents=True)
    for name in LINKED:
        (project / name).symlink_to(ROOT / name)
    for name in COPIED:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, project / name)
    for name in ("data", "logs", "pids", "backups"):
        (project / name).mkdir()
    venv = project / ".venv"
    venv.mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (venv / name).symlink_to(Path(sys.prefix) / name)
    # scripts/venv.sh installs nothing where this file says that it is done.
    stamp = subprocess.check_output(["cksum", "requirements.lock", "pyproject.toml"], cwd=project)
    (venv / ".installed").write_bytes(stamp)
    return project


def _settings(addresses: Addresses, sandbox: RunningSandbox) -> dict[str, object]:
    found: dict[str, object] = {
        "REDIS_HOST": "localhost",
        "REDIS_PORT": addresses.redis,
        "IMAP_USER": sandbox.user,
        "GOOGLE_CLIENT_ID": "sandbox-client",
        "GOOGLE_CLIENT_SECRET": "sandbox-secret",
        "GOOGLE_TOKEN_URI": sandbox.token_uri,
        "GOOGLE_AUTH_URI": sandbox.auth_uri,
        **PACE,
    }
    if not addresses.literal:
        found |= {"IMAP_HOST": addresses.imap_host, "IMAP_PORT": addresses.imap}
        found |= {"OPS_PORT": addresses.ops, "METRICS_PORT": addresses.metrics}
    return found


def _environment(addresses: Addresses, shims: Path, certificate: Path, python_path: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    paths = [path for path in (python_path, os.environ.get("PYTHONPATH", "")) if path]
    path = os.pathsep.join([str(shims), str(Path(sys.prefix) / "bin"), os.environ["PATH"], "/usr/sbin", "/sbin"])
    return kept | {
        "PATH": path,
        "REDIS_HOST": "localhost",
        "REDIS_PORT": str(addresses.redis),
        "SSL_CERT_FILE": str(certificate),
        "BROWSER": str(shims / "consent"),
        **({"PYTHONPATH": os.pathsep.join(paths)} if paths else {}),
    }
