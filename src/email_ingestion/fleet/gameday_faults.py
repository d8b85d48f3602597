"""Breaks the sandbox's stack on purpose, for a person to practise on, and mends it again; never a stack with real mail.

What is broken stands in a file until it is mended, and a process of its own mends it when its time is over.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from email_ingestion.atomic_files import write_private
from email_ingestion.errors import OperationFailed
from email_ingestion.fleet.managed_processes import find_process, list_processes, start_all
from email_ingestion.fleet.redis_server import restart_redis
from email_ingestion.fleet.sandbox_stack import DATA, READY
from email_ingestion.fleet.subprocesses import spawn, terminate
from email_ingestion.oauth2.consent import authorize
from email_ingestion.settings import SANDBOX_PROFILE, Settings
from email_ingestion.stream import open_link
from email_ingestion.stream.redis_link import RedisLink
from gmail_sandbox.gameday import SandboxUnavailable, arm_scenario, disarm_scenario, give_consent, revoke_consent

STATE = DATA / "gameday.json"
RUNBOOK = "docs/runbooks/incident_response.md"
FOREIGN_ENTRIES = 20
KILL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Fault:
    """A line of the catalogue. `mend` may find that a person has done it already."""

    section: str  # of RUNBOOK
    text: str
    hint: Callable[[Settings], str]  # what the sandbox does differently from the runbook's machine; mostly nothing
    break_: Callable[[Settings], dict[str, Any]]  # returns what `mend` has to know
    mend: Callable[[Settings, dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Broken:
    """What is broken now, until when (Unix seconds)."""

    name: str
    until: float
    known: dict[str, Any]


def broken() -> Broken | None:
    """What is broken now, if anything."""
    try:
        return Broken(**json.loads(STATE.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def begin(settings: Settings, name: str, seconds: float) -> Broken:
    """Break it, and leave somebody behind who mends it after so many seconds. Raises OperationFailed."""
    _only_the_sandbox(settings)
    if now := broken():
        raise OperationFailed(f"{now.name} is broken already: `email-ingestion gameday --undo` first")
    made = Broken(name, time.time() + seconds, FAULTS[name].break_(settings))
    write_private(STATE, json.dumps(asdict(made)))
    command = [sys.executable, "-m", "email_ingestion", "gameday", "--undo", "--after", f"{max(1, round(seconds))}s"]
    spawn(command, settings.log_dir / "gameday.out", _waiter(settings).exists, seconds=KILL_SECONDS * 4)
    return made


def undo(settings: Settings) -> str | None:
    """Mend what is broken; returns its name, or None when nothing is. Raises OperationFailed."""
    if waiter := find_process(_waiter(settings)):
        terminate([waiter], KILL_SECONDS)
    return mend(settings)


def mend(settings: Settings) -> str | None:
    """The same, by the process that waited for it."""
    now = broken()
    if now is None:
        return None
    if SANDBOX_PROFILE.exists():  # else all of it was stopped meanwhile
        FAULTS[now.name].mend(settings, now.known)
    STATE.unlink(missing_ok=True)
    return now.name


def _waiter(settings: Settings) -> Path:
    return settings.pid_dir / "gameday.pid"


def _only_the_sandbox(settings: Settings) -> None:
    if not SANDBOX_PROFILE.exists() or not find_process(settings.pid_dir / "sandbox.pid"):
        raise OperationFailed("a game day breaks the sandbox's stack only: `./scripts/start.sh --sandbox` first")
    profile = SANDBOX_PROFILE.read_text().splitlines()
    if f"REDIS_URL={settings.redis_address.url}" not in profile or f"IMAP_PORT={settings.imap_port}" not in profile:
        raise OperationFailed("the environment points at another Redis or mail server than the sandbox's: unset that")


# -- Redis


def _kill(processes: list[psutil.Process]) -> None:
    if not processes:
        raise OperationFailed("there is nothing to break, it is down already: `./scripts/start.sh --sandbox` first")
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, KILL_SECONDS)


def _break_redis(settings: Settings) -> dict[str, Any]:
    server = find_process(settings.pid_dir / "redis.pid")
    _kill([server] if server else [])
    return {}


def _mend_redis(settings: Settings, _known: dict[str, Any]) -> None:
    if not find_process(settings.pid_dir / "redis.pid"):
        restart_redis(Path("data"), settings.pid_dir / "redis.pid", settings.log_dir / "redis.out", settings.redis_port)


def _redis_hint(_settings: Settings) -> str:
    return "systemd does not know this Redis; here it starts with: ./scripts/start.sh --sandbox"


# -- the mailbox


def _arm(name: str) -> Callable[[Settings], dict[str, Any]]:
    def arm(_settings: Settings) -> dict[str, Any]:
        with _sandbox_errors():
            arm_scenario(_control_url(), name)
        return {}

    return arm


def _disarm(name: str) -> Callable[[Settings, dict[str, Any]], None]:
    def disarm(_settings: Settings, _known: dict[str, Any]) -> None:
        with _sandbox_errors():
            disarm_scenario(_control_url(), name)

    return disarm


def _revoke(settings: Settings) -> dict[str, Any]:
    """Take the consent back, as the owner of the mailbox can at any time, and end the session."""
    file = settings.google_token_file
    try:
        token = json.loads(file.read_text())["refresh_token"]
    except (OSError, ValueError, KeyError) as error:
        raise OperationFailed(
            f"there is no consent in {file} to be taken back: `python producer.py --auth-setup`"
        ) from error
    with _sandbox_errors():
        revoke_consent(settings.google_token_uri, token)
        arm_scenario(_control_url(), "sessions-ended")
    return {}


def _consent(settings: Settings, _known: dict[str, Any]) -> None:
    """Give the consent again; the sandbox's page asks nobody and redirects at once."""
    lines: list[str] = []

    def answer(_prompt: str) -> str:
        with _sandbox_errors():
            return give_consent(next(line for line in lines if line.startswith("http")))

    authorize(settings.all_accounts[0], lines.append, answer)


def _control_url() -> str:
    return f"http://127.0.0.1:{json.loads(READY.read_text())['control_port']}"


@contextmanager
def _sandbox_errors() -> Iterator[None]:
    try:
        yield
    except SandboxUnavailable as error:
        raise OperationFailed(f"the sandbox does not do it ({error}): see logs/sandbox.out") from error


# -- workers and their mail


def _break_workers(settings: Settings) -> dict[str, Any]:
    workers = [member.pid for member in list_processes(settings) if member.stem.startswith("worker") and member.pid]
    _kill([psutil.Process(pid) for pid in workers])
    return {"workers": len(workers)}


def _mend_workers(settings: Settings, known: dict[str, Any]) -> None:
    start_all(settings, int(known["workers"]), lambda _: None)


def append_foreign_entries(link: RedisLink, count: int) -> None:
    """Append entries that are no mail, as another program's mistake leaves them; a worker dead-letters each of them.

    Raises what `RedisLink.call` raises.
    """

    def append() -> None:
        pipe = link.client.pipeline(transaction=True)
        for number in range(count):
            pipe.xadd(link.keys.stream, {"written_by": "gameday", "number": number})
        pipe.execute()

    link.call(append)


def _break_stream(settings: Settings) -> dict[str, Any]:
    append_foreign_entries(open_link(settings.redis_address, "email-ingestion-gameday"), FOREIGN_ENTRIES)
    return {}


def _nothing(_settings: Settings) -> str:
    return ""


def _leave(_settings: Settings, _known: dict[str, Any]) -> None:
    """What was added to the stream is in the dead letters: they stay until somebody purges them."""


FAULTS: Mapping[str, Fault] = {
    "redis-down": Fault("21-redis-down", "Redis is killed", _redis_hint, _break_redis, _mend_redis),
    "imap-unreachable": Fault(
        "22-imap-unreachable",
        "the mail server takes no connections",
        _nothing,
        _arm("imap-unreachable"),
        _disarm("imap-unreachable"),
    ),
    "token-expired": Fault("23-oauth2-token-expired", "the consent is taken back", _nothing, _revoke, _consent),
    "breaker-open": Fault(
        "24-circuit-breaker-open",
        "the mail server ends every connection at once",
        _nothing,
        _arm("breaker-open"),
        _disarm("breaker-open"),
    ),
    "dlq-growing": Fault(
        "25-dlq-growing",
        f"{FOREIGN_ENTRIES} entries that are no mail get into the stream",
        lambda _: "nothing can be mended about these: `email-ingestion dlq purge` ends it",
        _break_stream,
        _leave,
    ),
    "worker-crash": Fault("26-worker-crash-or-oom", "the workers are killed", _nothing, _break_workers, _mend_workers),
}
