"""The sandbox as a whole: a Redis, a Gmail look-alike with mail, and the settings that point everything at them."""

from __future__ import annotations

import json
import math
import secrets
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, closing, suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.progress import Progress

from email_ingestion.atomic_files import file_lock, write_private
from email_ingestion.errors import OperationFailed
from email_ingestion.fleet.managed_processes import check_started, find_foundations, find_processes
from email_ingestion.fleet.redis_server import SERVICE_USER, USUAL_PORT, start_redis
from email_ingestion.fleet.subprocesses import DetachedProcess, spawn, start_on_free_ports
from email_ingestion.fleet.web_process import web_url
from email_ingestion.ledger.store import open_ledger
from email_ingestion.settings import SANDBOX_PROFILE, Settings, load_settings

DATA = Path("data/sandbox")
READY = DATA / "ready.json"
TOKEN = DATA / "token.json"
USER = "demo@example.com"
PORTS = {"imap": 1143, "oauth": 1180, "control": 1181}
START_SECONDS = 60.0
PROCESS_SECONDS = 300.0


def one_start_at_a_time() -> AbstractContextManager[None]:
    """Hold another start off for the block: two would give one folder two servers.

    Raises ConfigurationError where nothing can be written.
    """
    return file_lock(DATA / "start")


def start_sandbox(say: Callable[[str], None]) -> None:
    """Start Redis and the sandbox where they do not run, and write the profile that everything else reads.

    What died and is started again has its old ports, if they are free: those who outlived it know no others.
    """
    settings = load_settings()
    redis_pid = settings.pid_dir / "redis.pid"
    sandbox_pid = settings.pid_dir / "sandbox.pid"
    running = find_foundations(settings)
    if "redis" in running and SANDBOX_PROFILE.exists():
        redis_url = settings.redis_address.url
    else:
        redis_pid.unlink(missing_ok=True)
        port = (SANDBOX_PROFILE.exists() and urlsplit(settings.redis_address.url).port) or USUAL_PORT
        redis_url = start_redis(Path("data"), redis_pid, settings.log_dir / "redis.out", _password(settings), port)
        say(f"Redis listens on port {urlsplit(redis_url).port}")
    if "sandbox" not in running:
        ports = _start_sandbox(sandbox_pid, settings)
        say(f"the Gmail sandbox listens on port {ports['imap_port']} (IMAP)")
    write_private(SANDBOX_PROFILE, _profile(redis_url, json.loads(READY.read_text())))


def _password(settings: Settings) -> str:
    """Return the password of the profile, for processes that outlived Redis still have it, or a new one."""
    known = urlsplit(settings.redis_address.url)
    if SANDBOX_PROFILE.exists() and known.username == SERVICE_USER and known.password:
        return known.password
    return secrets.token_hex(16)


def _start_sandbox(pid_file: Path, settings: Settings) -> dict[str, Any]:
    wanted = _ports_before()
    READY.unlink(missing_ok=True)
    DATA.mkdir(parents=True, exist_ok=True)

    def launch(ports: Sequence[int]) -> None:
        command = [sys.executable, "-m", "email_ingestion", "sandbox"]
        for name, port in zip(PORTS, ports, strict=True):
            command += [f"--{name}-port", str(port)]
        command += ["--state", str(DATA / "mailbox.db"), "--user", USER]
        command += ["--write-token", str(TOKEN), "--ready-file", str(READY), "--pid-file", str(pid_file)]
        spawn(command, settings.log_dir / "sandbox.out", READY.exists, seconds=START_SECONDS)

    start_on_free_ports(wanted, launch)
    ready: dict[str, Any] = json.loads(READY.read_text())
    return ready


def _ports_before() -> list[int]:
    """Return the ports of the sandbox that died, or the usual ones."""
    if SANDBOX_PROFILE.exists():
        with suppress(OSError, ValueError, KeyError, TypeError):
            before = json.loads(READY.read_text())
            return [int(before[f"{name}_port"]) for name in PORTS]
    return list(PORTS.values())


def _profile(redis_url: str, ready: dict[str, Any]) -> str:
    values = {
        "REDIS_URL": redis_url,
        "REDIS_HOST": "127.0.0.1",
        "REDIS_PORT": urlsplit(redis_url).port,
        "IMAP_HOST": "127.0.0.1",
        "IMAP_PORT": ready["imap_port"],
        "IMAP_TLS": "false",
        "IMAP_USER": USER,
        "IMAP_AUTH": "oauth2",
        "GOOGLE_CLIENT_ID": "sandbox-client",
        "GOOGLE_CLIENT_SECRET": "sandbox-secret",
        "GOOGLE_TOKEN_FILE": TOKEN,
        "GOOGLE_TOKEN_URI": f"http://127.0.0.1:{ready['oauth_port']}/token",
        "GOOGLE_AUTH_URI": f"http://127.0.0.1:{ready['oauth_port']}/auth",
    }
    head = "# Written by start.sh --sandbox, removed by stop.sh: while it is here, everything speaks to the sandbox.\n"
    return head + "".join(f"{name}={value}\n" for name, value in values.items())


def control_url() -> str | None:
    """Return the URL of the control API of the sandbox that is in use; None when none is."""
    if not SANDBOX_PROFILE.exists() or not READY.exists():
        return None
    return f"http://127.0.0.1:{json.loads(READY.read_text())['control_port']}"


def wait_until_processed(settings: Settings, started: Mapping[str, DetachedProcess]) -> None:
    """Wait until the mail of the sandbox is in the database.

    Raises OperationFailed when it takes too long, ProcessesNotStarted when one of `started` ends meanwhile.
    """
    deadline = time.monotonic() + PROCESS_SECONDS
    fetched_at = math.inf
    own = {each.name for each in settings.all_accounts if each.imap_user == USER}
    with Progress(transient=True) as progress:
        task = progress.add_task("processing the sample mail", total=None)
        while True:
            check_started(settings, started)
            body = _producer_status(settings)
            if body and _fetched(body, own):
                fetched_at = min(fetched_at, time.time())
            if body and _drained(body["stream"], fetched_at):
                return
            if time.monotonic() > deadline:
                raise OperationFailed(f"the sample mail is not processed after {PROCESS_SECONDS:.0f} s: see logs/")
            if body:
                progress.update(task, completed=body["statistics"]["produced"] - (body["stream"]["depth"] or 0))
            time.sleep(0.1)


def _producer_status(settings: Settings) -> dict[str, Any] | None:
    """Return the `/status` of the producer."""
    return next((process.status() for process in find_processes(settings) if process.stem == "producer"), None)


def _fetched(body: dict[str, Any], accounts: Collection[str]) -> bool:
    """Return whether the producer has read these accounts' whole mailboxes, their older mail included."""
    states = [
        (account["watch"], account["backlog"], (account["history"] or {}).get("remaining"))
        for account in body["accounts"]
        if not accounts or account["name"] in accounts  # others are somebody's, and may be out of reach
    ]
    return bool(states) and all(state == ("idle", 0, 0) for state in states)


def _drained(stream: dict[str, Any], since: float) -> bool:
    """Return whether the stream was empty at a time after `since`."""
    read_at = stream["collected_at"]
    return stream["depth"] == 0 and bool(read_at) and datetime.fromisoformat(read_at).timestamp() > since


def summary_screen(settings: Settings, web: str) -> str:
    """Return one screen of text: what was ingested, where to look, how to stop; `web` says where the pages are."""
    with closing(open_ledger(settings.database_url)) as ledger:
        stored = ledger.count()
    ready = json.loads(READY.read_text())
    urls = {process.stem: process.ops_url for process in find_processes(settings) if process.pid}
    body = r'{"raw": "Subject: hello\r\n\r\nworld"}'
    deliver = f"curl -s -d '{body}' http://127.0.0.1:{ready['control_port']}/deliver"
    lines = [
        "",
        f"  {stored} messages travelled over IMAP and Redis into {settings.database_url}",
        "",
        "  Look at the mail     .venv/bin/email-ingestion search receipt",
        "  Look at the service  .venv/bin/email-ingestion status",
    ]
    lines += [f"  {stem:<20} {url}/status" for stem, url in sorted(urls.items())]
    if (address := web_url(settings.pid_dir)) is None:
        lines += [f"  {web}"]
    else:
        lines += [
            f"  In a browser         {address} (read API: {address}/api/v1)",
            "  A link that lets in  .venv/bin/email-ingestion web login-link",
        ]
    lines += [
        f"  Deliver a message    {deliver}",
        f"  Logs                 {settings.log_dir}/producer.log {settings.log_dir}/worker.log",
        "  Stop                 ./scripts/stop.sh",
        "",
    ]
    return "\n".join(lines)
