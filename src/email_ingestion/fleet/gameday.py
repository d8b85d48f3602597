"""Breaks the sandbox's stack on purpose, for a person to practise on, and mends it again; never a stack with real mail.

What is broken stands in a file until it is mended, and a process of its own mends it when its time is over.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from http.client import HTTPMessage
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlencode, urlsplit

import psutil

from email_ingestion.atomic_files import write_private
from email_ingestion.errors import OperationFailed
from email_ingestion.fleet.managed_processes import find_process, list_processes, start_all
from email_ingestion.fleet.redis_server import restart_redis, start_command
from email_ingestion.fleet.sandbox_stack import DATA, READY
from email_ingestion.fleet.subprocesses import spawn, terminate
from email_ingestion.oauth2.consent import authorize
from email_ingestion.settings import SANDBOX_PROFILE, Settings
from email_ingestion.stream import open_link
from email_ingestion.stream.strangers import add_strangers

STATE = DATA / "gameday.json"
RUNBOOK = "docs/runbooks/incident_response.md"
STRANGERS = 20
KILL_SECONDS = 5.0
HTTP_SECONDS = 10.0
# What the sandbox is told, by fault; the drills of the runbook tell their sandbox the same.
ARMED: Mapping[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "imap-unreachable": (("refuse_connections", {"options": {"drop_sessions": True}}),),
    "breaker-open": (("greeting_bye", {"count": None}), ("session_expiry", {})),
}


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
    spawn(command, settings.log_dir / "gameday.log", _waiter(settings).exists, seconds=KILL_SECONDS * 4)
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
        restart_redis(Path("data"), settings.pid_dir / "redis.pid", settings.log_dir / "redis.log", settings.redis_port)


def _redis_hint(_settings: Settings) -> str:
    return f"systemd does not know this Redis; here it starts with: {' '.join(start_command(Path('data')))} &"


# -- the mailbox


def _arm(name: str) -> Callable[[Settings], dict[str, Any]]:
    def arm(_settings: Settings) -> dict[str, Any]:
        for fault, more in ARMED[name]:
            _control("POST", "/faults", {"name": fault, **more})
        return {}

    return arm


def _disarm(name: str) -> Callable[[Settings, dict[str, Any]], None]:
    def disarm(_settings: Settings, _known: dict[str, Any]) -> None:
        for fault, _ in ARMED[name]:
            _control("DELETE", f"/faults/{fault}")

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
    uri = urlsplit(settings.google_token_uri)._replace(path="/revoke").geturl()
    _ask(urllib.request.Request(uri, urlencode({"token": token}).encode(), method="POST"))  # noqa: S310 - the sandbox's
    _control("POST", "/faults", {"name": "session_expiry"})
    return {}


def _consent(settings: Settings, _known: dict[str, Any]) -> None:
    """Give it again; the sandbox's page asks nobody and redirects at once."""
    said: list[str] = []
    authorize(settings.all_accounts[0], said.append, lambda _: _redirect(next(x for x in said if x.startswith("http"))))


def _redirect(url: str) -> str:
    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(  # noqa: PLR0917 - urllib's signature
            self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
        ) -> None:
            del req, fp, code, msg, headers, newurl

    try:
        urllib.request.build_opener(Stay).open(url, timeout=HTTP_SECONDS).close()
    except urllib.error.HTTPError as error:
        return str(error.headers.get("Location", ""))
    except OSError as error:
        raise OperationFailed(f"the sandbox does not answer ({error}): `./scripts/start.sh --sandbox`") from error
    raise OperationFailed("the sandbox's consent page did not redirect: see logs/sandbox.log")


# -- workers and their mail


def _break_workers(settings: Settings) -> dict[str, Any]:
    workers = [member.pid for member in list_processes(settings) if member.stem.startswith("worker") and member.pid]
    _kill([psutil.Process(pid) for pid in workers])
    return {"workers": len(workers)}


def _mend_workers(settings: Settings, known: dict[str, Any]) -> None:
    start_all(settings, int(known["workers"]), lambda _: None)


def _add_strangers(settings: Settings) -> dict[str, Any]:
    add_strangers(open_link(settings.redis_address, "email-ingestion-gameday"), STRANGERS)
    return {}


# -- HTTP


def _control(method: str, path: str, body: dict[str, Any] | None = None) -> None:
    port = json.loads(READY.read_text())["control_port"]
    data = json.dumps(body).encode() if body else None
    _ask(urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, method=method))


def _ask(request: urllib.request.Request) -> None:
    try:
        urllib.request.urlopen(request, timeout=HTTP_SECONDS).close()  # noqa: S310 - the sandbox's
    except OSError as error:
        raise OperationFailed(f"the sandbox does not do it ({error}): see logs/sandbox.log") from error


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
        f"{STRANGERS} entries that are no mail get into the stream",
        lambda _: "nothing can be mended about these: `email-ingestion dlq purge` ends it",
        _add_strangers,
        _leave,
    ),
    "worker-crash": Fault("26-worker-crash-or-oom", "the workers are killed", _nothing, _break_workers, _mend_workers),
}
