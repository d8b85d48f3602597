"""Producer and workers of this machine: find them, start what is missing, stop all, keep several workers running."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from email_ingestion.daemon import StopSignal, handle_signals, read_pid, running_pid
from email_ingestion.errors import OperationFailed
from email_ingestion.fleet.subprocesses import DetachedProcess, is_alive, terminate
from email_ingestion.fleet.web_process import STEM as WEB
from email_ingestion.fleet.web_process import is_web
from email_ingestion.ops.prometheus_targets import remove_target
from email_ingestion.ops.sockets import OPS_PORT
from email_ingestion.settings import SANDBOX_PROFILE, Settings, environment

if TYPE_CHECKING:
    import httpx

START_SECONDS = 30.0
ANSWER_SECONDS = 2.0
MAX_ANSWER_BYTES = 8 * 1024 * 1024
FOUNDATION_SECONDS = 10.0
PROBE_SECONDS = 1.0
SCANNED_PORTS = 9  # the producer's and those of eight workers; more are found by their names
COMPONENTS = ("producer", "worker")
ENTRY_POINTS = ("producer.py", "worker.py")
PROGRAMS = ("email-ingestion", "email_ingestion")  # the console script, and `python -m`
# Stopped last, in this order: the others need them to finish their work.
FOUNDATIONS = ("sandbox", "redis")
RESTART_SECONDS = 1.0  # before a crashed worker is started again
POLL_SECONDS = 0.1
FINAL_CODES = frozenset([2, 64, 78])  # of a process that only an operator can help
_PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(frozen=True, slots=True)
class ManagedProcess:
    """A process of this machine that left a PID file."""

    stem: str
    pid: int | None  # None when the process is dead
    ops_url: str | None
    last_pid: int | None = None  # of the PID file, whether or not the process lives
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # that reading from it needs

    def status(self) -> dict[str, Any] | None:
        """Return the `/status` of the process; None when it is dead or does not answer."""
        return get_json(f"{self.ops_url}/status", headers=self.headers) if self.pid and self.ops_url else None


def list_processes(settings: Settings) -> list[ManagedProcess]:
    """Return the producer and the workers that run here, or died here and left their PID file."""
    headers = read_headers(settings)
    return [
        ManagedProcess(path.stem, running_pid(path), _ops_url(path), read_pid(path), headers)
        for path in sorted(settings.pid_dir.glob("*.pid"))
        if path.stem.startswith(("producer", "worker"))
    ]


def find_processes(settings: Settings) -> list[ManagedProcess]:
    """Return what `list_processes` finds and the processes of this folder without a PID file, which their ports show.

    The PID files may have been deleted while all runs.
    """
    listed = list_processes(settings)
    known = {process.pid for process in listed if process.pid}
    found = {process.stem: process for process in listed}
    headers = read_headers(settings)
    for port in sorted(_own_ports(settings)):
        url = f"http://{_loopback(settings)}:{port}"
        body = get_json(f"{url}/status", PROBE_SECONDS, headers) or {}
        pid, component = body.get("pid"), body.get("component")
        if component not in {"producer", "worker"} or not pid or pid in known or not _is_ours(pid):
            continue
        stem = _stem(component, str(body.get("instance")))
        if stem not in found or not found[stem].pid:
            found[stem] = ManagedProcess(stem, pid, url, headers=headers)
            known.add(pid)
    return [found[stem] for stem in sorted(found)]


def _own_ports(settings: Settings) -> set[int]:
    """Return the ports where processes of ours listen: those of the settings, and those of what is called like them."""
    first = OPS_PORT if settings.ops_port is None else settings.ops_port
    ports = {first + offset for offset in range(SCANNED_PORTS)} if first else set()
    listening = {port for port in ports if _listens(_loopback(settings), port)}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if is_entry_point(process.cmdline()) and _is_ours(process.pid):
                connections = process.net_connections("inet")
                listening |= {each.laddr.port for each in connections if each.status == psutil.CONN_LISTEN}
    return listening


def entry_point(component: str) -> list[str]:
    """Return the command of a producer or a worker: the script of a checkout, or the installed package."""
    script = Path(f"{component}.py")
    return [sys.executable, str(script)] if script.exists() else [sys.executable, "-m", "email_ingestion", component]


def is_entry_point(words: Sequence[str]) -> bool:
    """Return whether a command line is that of a producer or a worker."""
    if any(Path(word).name in ENTRY_POINTS for word in words[:3]):
        return True
    started_as = [Path(word).name for word in words[:4]]
    return any(first in PROGRAMS and second in COMPONENTS for first, second in pairwise(started_as))


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=PROBE_SECONDS).close()
    except OSError:
        return False
    return True


def _loopback(settings: Settings) -> str:
    return "127.0.0.1" if settings.ops_host in {"", "0.0.0.0", "::", "localhost"} else settings.ops_host  # noqa: S104


def _is_ours(pid: Any) -> bool:
    """Return whether a process of this machine works in this folder with this PID_DIR.

    Of a process of another user nobody may see that: it is ours if that user owns the PID_DIR, as a service's does.
    """
    process = None
    try:
        process = psutil.Process(int(pid))
        same = Path(process.cwd()) == Path.cwd()
        return same and process.environ().get("PID_DIR") == environment().get("PID_DIR")
    except psutil.AccessDenied:
        return process is not None and _owns_the_folder(process)
    except (psutil.Error, OSError, TypeError, ValueError):
        return False


def _owns_the_folder(process: psutil.Process) -> bool:
    folder = Path(environment().get("PID_DIR") or "pids")
    with suppress(psutil.Error, OSError, AttributeError):  # on Windows there are no such numbers
        return bool(process.uids().real == folder.stat().st_uid)
    return False


def _may_signal(process: psutil.Process) -> bool:
    with suppress(psutil.Error, AttributeError):
        return os.geteuid() in {0, process.uids().real}
    return True


def _stem(component: str, instance: str) -> str:
    number = instance.rpartition("-")[2]
    return component if component == "producer" or number in {"1", ""} else f"{component}-{number}"


class ProcessesNotStarted(OperationFailed):
    """Processes that ended or were not ready in time; `failures` has a sentence for each."""

    def __init__(self, failures: dict[str, str]) -> None:
        super().__init__("; ".join(f"{stem} did not start: {reason}" for stem, reason in failures.items()))
        self.failures = failures


def start_all(settings: Settings, workers: int, say: Callable[[str], None]) -> dict[str, DetachedProcess]:
    """Start the producer and `workers` workers unless they run, and wait until each is ready; return the started ones.

    Raises ConfigurationError, and ProcessesNotStarted when one is not ready: then nothing that was started still runs.
    """
    running = {process.stem: process for process in find_processes(settings) if process.pid}
    started: dict[str, DetachedProcess] = {}
    try:
        for number in range(workers + 1):
            stem = "producer" if number == 0 else "worker" if number == 1 else f"worker-{number}"
            if stem in running:
                say(f"{stem} is already running, PID {running[stem].pid}")
                continue
            options = [] if number == 0 else ["--instance", str(number)]
            started[stem] = DetachedProcess(
                [*entry_point("producer" if number == 0 else "worker"), *options],
                settings.log_dir / f"{stem}.log",
                environment() | process_ports(settings, number),
            )
        wait_until_ready(settings, started)
    except BaseException:
        end_started(settings, started)
        raise
    return started


def wait_until_ready(settings: Settings, started: Mapping[str, DetachedProcess]) -> None:
    """Wait until each is ready or has ended; raise ProcessesNotStarted with the reason of each that is not ready."""
    deadline = time.monotonic() + START_SECONDS + len(started)
    failures = dict[str, str]()
    waiting = dict(started)
    while waiting:
        for stem, process in list(waiting.items()):
            body = _readiness(settings.pid_dir / f"{stem}.pid")
            if _has_ended(settings, stem, process):
                failures[stem] = process.last_line()
            elif time.monotonic() > deadline:
                reasons = "; ".join(body["reasons"]) if body else process.last_line()
                failures[stem] = f"not ready within {START_SECONDS + len(started):.0f} s: {reasons}"
            elif not body or body["status"] not in {"ready", "degraded"}:
                continue
            del waiting[stem]
        time.sleep(POLL_SECONDS)
    if failures:
        raise ProcessesNotStarted(failures)


def _has_ended(settings: Settings, stem: str, process: DetachedProcess) -> bool:
    """Return whether it has ended, and none that another start has brought up meanwhile is in its place."""
    return process.exit_code() is not None and running_pid(settings.pid_dir / f"{stem}.pid") is None


def check_started(settings: Settings, started: Mapping[str, DetachedProcess]) -> None:
    """Raise ProcessesNotStarted with the reason of each that has ended meanwhile."""
    failures = {stem: it.last_line() for stem, it in started.items() if _has_ended(settings, stem, it)}
    if failures:
        raise ProcessesNotStarted(failures)


def end_started(settings: Settings, started: Mapping[str, DetachedProcess]) -> None:
    """End what was started in vain."""
    for process in started.values():
        process.end(settings.stop_seconds + 5.0)


def stop_foundations(settings: Settings, keep: Collection[str]) -> None:
    """Stop the sandbox and its Redis, but those of `keep`; leave both if a producer or worker runs."""
    if any(process.pid for process in find_processes(settings)):
        return
    for stem, process in find_foundations(settings).items():
        if stem not in keep:
            terminate([process], FOUNDATION_SECONDS)
            (settings.pid_dir / f"{stem}.pid").unlink(missing_ok=True)
    if not set(FOUNDATIONS) & set(keep):
        SANDBOX_PROFILE.unlink(missing_ok=True)


def find_foundations(settings: Settings) -> dict[str, psutil.Process]:
    """Return which of sandbox and Redis run here, the sandbox first: by PID file, and without one by what they are."""
    found = _unlisted_foundations()
    listed = {stem: find_process(settings.pid_dir / f"{stem}.pid") for stem in FOUNDATIONS}
    return {stem: process for stem in FOUNDATIONS if (process := listed[stem] or found.get(stem))}


def dead_foundations(settings: Settings) -> dict[str, int | None]:
    """Return which of sandbox and Redis should run here and do not, with the PIDs they had."""
    if not SANDBOX_PROFILE.exists():
        return {}
    files = {stem: settings.pid_dir / f"{stem}.pid" for stem in FOUNDATIONS}
    if all(map(find_process, files.values())):
        return {}
    running = find_foundations(settings)
    return {stem: read_pid(path) for stem, path in files.items() if stem not in running}


def stop_all(settings: Settings, say: Callable[[str], None]) -> bool:
    """Stop everything; return whether nothing is left running."""
    named = {path.stem: process for path in settings.pid_dir.glob("*.pid") if (process := find_process(path))}
    named = _without_pid_files(settings) | _unlisted_foundations() | _unlisted_web() | named
    loops = {stem: process for stem, process in named.items() if stem not in FOUNDATIONS}
    _terminate(loops, settings.stop_seconds + 5.0, say)
    for stem in FOUNDATIONS:
        _terminate({stem: named[stem]} if stem in named else {}, FOUNDATION_SECONDS, say)
    for path in settings.pid_dir.glob("*.pid"):
        if not find_process(path):
            path.unlink(missing_ok=True)
            remove_target(path.stem)
    SANDBOX_PROFILE.unlink(missing_ok=True)
    if not named:
        say("nothing was running")
    return not any(is_alive(process) for process in named.values())


def _without_pid_files(settings: Settings) -> dict[str, psutil.Process]:
    """Find what runs in this folder though its PID file was deleted, as far as we may stop it."""
    found = {}
    for each in find_processes(settings):
        with suppress(psutil.Error):
            if each.pid and not each.last_pid:
                found[each.stem] = psutil.Process(each.pid)
                found[each.stem].environ()  # refused for a process of another user
    return found


def _unlisted_foundations() -> dict[str, psutil.Process]:
    """Find sandbox and Redis of this folder whether or not they have PID files."""
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.name().startswith(("redis", "valkey")):
                if Path(process.cwd()).parent == Path("data").resolve() and SANDBOX_PROFILE.exists():
                    found["redis"] = process
            elif process.cmdline()[1:4] == ["-m", "email_ingestion", "sandbox"] and _is_ours(process.pid):
                found["sandbox"] = process
    return found


def runs_web(settings: Settings) -> bool:
    """Return whether the web process of this folder runs."""
    return running_pid(settings.pid_dir / f"{WEB}.pid") is not None or bool(_unlisted_web())


def _unlisted_web() -> dict[str, psutil.Process]:
    """Find the web process of this folder whether or not it has a PID file."""
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if is_web(process.cmdline()) and _is_ours(process.pid):
                process.environ()  # refused for a process of another user
                found[WEB] = process
    return found


def _terminate(processes: dict[str, psutil.Process], seconds: float, say: Callable[[str], None]) -> None:
    ours = {stem: process for stem, process in processes.items() if _may_signal(process)}
    killed = terminate(ours.values(), seconds)
    for stem, process in sorted(ours.items()):
        say(f"{stem} {'had to be killed' if process in killed else 'stopped'}")
    for stem in sorted(processes.keys() - ours.keys()):
        with suppress(psutil.Error):
            owner = processes[stem].username()
            say(
                f"{stem} (PID {processes[stem].pid}) runs on: it is of the user {owner}; give this command as that user"
            )


def find_process(path: Path) -> psutil.Process | None:
    """Return the process behind a PID file, if it is that process and lives."""
    pid = _redis_pid(path) if path.stem == "redis" else running_pid(path)
    if pid is None:
        return None
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid)
    return None


def read_headers(settings: Settings) -> dict[str, str]:
    """Return the headers with the token of OPS_READ_TOKEN_FILE, if there is one."""
    try:
        token = settings.ops_read_token_file.read_text().strip() if settings.ops_read_token_file else ""
    except OSError:  # what is not answered then is shown as such
        token = ""
    return {"Authorization": f"Bearer {token}"} if token else {}


def get_json(
    url: str, seconds: float = ANSWER_SECONDS, headers: Mapping[str, str] | None = None
) -> dict[str, Any] | None:
    """Return the JSON object at a URL of one of our processes, whatever its HTTP status; None without an answer."""
    import httpx  # noqa: PLC0415 - it takes 0.1 s, and nothing may run here

    try:
        value = json.loads(read_answer(url, seconds, headers))
    except (httpx.HTTPError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_answer(url: str, seconds: float, headers: Mapping[str, str] | None = None) -> bytes:
    """Return what is answered at a URL, whatever its HTTP status; `seconds` for each wait, and twice for all of it.

    The address may come from Redis, and anybody may be there. Raises httpx.HTTPError, and ValueError for an answer
    that is too long or takes too long.
    """
    end, parts, size = time.monotonic() + 2 * seconds, [], 0
    plain = {**(headers or {}), "Accept-Encoding": "identity"}  # nothing unpacks to gigabytes
    with http_client().stream("GET", url, timeout=seconds, headers=plain) as answer:
        for part in answer.iter_raw():
            size += len(part)
            if size > MAX_ANSWER_BYTES or time.monotonic() > end:
                raise ValueError("the answer is too long")
            parts.append(part)
    return b"".join(parts)


@cache
def http_client() -> httpx.Client:
    """Return the client for our own processes: no proxy, no kept connection, and no time spent on certificates."""
    import httpx  # noqa: PLC0415

    without_certificates = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.Client(trust_env=False, verify=without_certificates, limits=limits)


def _readiness(pid_file: Path) -> dict[str, Any] | None:
    url = _ops_url(pid_file)
    return get_json(f"{url}/ready") if url and running_pid(pid_file) else None


def _ops_url(pid_file: Path) -> str | None:
    try:
        found = json.loads(pid_file.with_suffix(".json").read_text())
        # A killed process leaves both files behind; a new one writes the PID first.
        return str(found["ops_url"]) if found["pid"] == int(pid_file.read_text()) else None
    except (OSError, ValueError, KeyError):
        return None


def process_ports(settings: Settings, offset: int) -> dict[str, str]:
    """Return OPS_PORT and METRICS_PORT of the process `offset` places after the first one, where they are set."""
    ports = {"OPS_PORT": settings.ops_port, "METRICS_PORT": settings.metrics_port}
    return {name: str(port + offset if port else port) for name, port in ports.items() if port is not None}


def _redis_pid(path: Path) -> int | None:
    """Identify redis-server by its name, for it holds no lock of ours; one that nobody waited for is dead."""
    try:
        pid = int(path.read_text())
        process = psutil.Process(pid)
        name = process.name()
    except (OSError, ValueError, psutil.Error):
        return None
    return pid if name.startswith(("redis", "valkey")) and is_alive(process) else None


class WorkerProcesses:
    """`count` workers from number `first` on, every one a process with the ports, files and name of its `--instance`.

    A worker that crashes is started again. One that refuses to start ends them all: only an operator can help it.
    Once `stop` is requested all get SIGTERM, and none is started again.
    """

    def __init__(self, settings: Settings, first: int, count: int, options: Sequence[str], stop: StopSignal) -> None:
        self._settings = settings
        self._first = first
        self._numbers = range(first, first + count)
        self._options = options
        self._stop = stop
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    def reload(self) -> str:
        """Pass SIGHUP on to the workers, which say in their logs what they did."""
        for child in list(self._running.values()):
            child.send_signal(signal.SIGHUP)
        return "passed on"

    def run(self) -> int:
        """Return the worst exit code when all have ended."""
        running = self._running
        running |= {number: self._start(number) for number in self._numbers}
        restart_at: dict[int, float] = {}
        codes: list[int] = []
        stopping = False
        while running or restart_at:
            if self._stop.is_set() and not stopping:
                stopping = True
                restart_at.clear()
                for child in running.values():
                    child.terminate()
            for number, code in [(number, child.poll()) for number, child in running.items()]:
                if code is None:
                    continue
                del running[number]
                if code in FINAL_CODES:
                    self._stop.request(f"worker {number} refused to start")
                if code == 0 or code in FINAL_CODES or stopping:
                    codes.append(abs(code))
                else:
                    restart_at[number] = time.monotonic() + RESTART_SECONDS
            for number in [number for number, at in restart_at.items() if at <= time.monotonic()]:
                del restart_at[number]
                running[number] = self._start(number)
            self._stop.wait(POLL_SECONDS) if not stopping else time.sleep(POLL_SECONDS)
        return max(codes, default=0)

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        called = [sys.executable, sys.argv[0]] if Path(sys.argv[0]).is_file() else entry_point("worker")
        command = [*called, "--instance", str(number), *self._options]
        variables = environment() | process_ports(self._settings, number - self._first)
        return subprocess.Popen(command, env=variables, preexec_fn=_end_with_parent())  # noqa: PLW1509 - see there


def _end_with_parent() -> Callable[[], None] | None:
    """Let the kernel end the workers of a killed parent (Linux): orphans would keep their names from the next ones."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up here: after the fork a thread's lock may be held for ever
    return partial(prctl, _PR_SET_PDEATHSIG, int(signal.SIGTERM))


def run_workers(settings: Settings, first: int, count: int, options: Sequence[str]) -> int:
    """Run workers until SIGTERM or SIGINT, or until all have ended; return the worst exit code."""
    stop = StopSignal()
    workers = WorkerProcesses(settings, first, count, options, stop)
    handle_signals(stop, lambda _: None, reload=workers.reload)
    return workers.run()
