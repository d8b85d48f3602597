"""The `/status` of every process of this machine, and what should run and does not, as a table."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from email_ingestion.errors import EmailIngestionError
from email_ingestion.fleet.managed_processes import FOUNDATIONS, ManagedProcess, dead_foundations, find_processes
from email_ingestion.fleet.web_process import STEM as WEB
from email_ingestion.fleet.web_process import WebProcess, find_web
from email_ingestion.ops.peers import MissingProcess, missing_processes, peers
from email_ingestion.ops.status_records import Peer
from email_ingestion.settings import Settings
from email_ingestion.stream import Gauges, open_link, read_gauges

WATCH_SECONDS = 2.0
POLL_SECONDS = 0.5
UNLIMITED = 10_000  # columns of a console on which a table is measured
OK_STATES = frozenset({"ready", "degraded"})


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """One process; `body` is its `/status`, None without an answer."""

    stem: str
    state: str
    body: dict[str, Any] | None
    missing: MissingProcess | None = None

    def as_json(self) -> dict[str, Any]:
        """Return its `/status`, or what is known without it."""
        if self.body:
            return self.body
        reasons = [self.missing.reason] if self.missing else []
        return {"component": self.component, "stem": self.stem, "status": self.state, "reasons": reasons}

    @property
    def component(self) -> str:
        """Producer, worker or web."""
        return self.stem.partition("-")[0]


@dataclass(frozen=True, slots=True)
class SystemStatus:
    """All processes of this machine, and the judgement of them."""

    processes: tuple[ProcessStatus, ...]
    missing: tuple[MissingProcess, ...]
    elsewhere: tuple[str, ...]  # processes that announce themselves in Redis and do not answer here
    redis_error: str | None  # why Redis could not be asked
    web: WebProcess | None = None  # it has no `/status`: it is among `processes` only while it does not serve

    @property
    def ok(self) -> bool:
        """Whether something runs that mail flows through, all works, and nothing is missing."""
        return not self.idle and not self.missing and all(each.state in OK_STATES for each in self.processes)

    @property
    def idle(self) -> bool:
        """Whether no producer and no worker is known here."""
        return all(each.component in {WEB, *FOUNDATIONS} for each in self.processes)

    def nothing(self) -> str:
        """Return the sentence for a machine where no process runs; the ports and Redis were asked before."""
        if self.elsewhere:
            return f"nothing runs here; elsewhere {', '.join(self.elsewhere)}"
        return "nothing runs here" + (f"; Redis could not be asked: {self.redis_error}" if self.redis_error else "")


def system_status(settings: Settings) -> SystemStatus:
    """Ask PID files, ports and Redis which processes there are, and every process how it is."""
    found = find_processes(settings)
    bodies = {process.stem: body for process in found if (body := process.status())}
    gauges, error = _read_redis(settings, bodies.values())
    answering = {str(body["instance"]) for body in bodies.values()}
    known = peers(
        None,
        gauges.processes if gauges else (),
        settings.pid_dir,
        lost=gauges.lost if gauges else (),
        pending=gauges.pending_by_consumer if gauges else None,
    )
    silent = [peer for peer in known if peer.instance not in answering]
    web = find_web(settings)
    everyone = silent + [_peer(body) for body in bodies.values()] + ([web.peer()] if web else [])
    now = time.time()
    fed = any(peer.component == "producer" and peer.alive for peer in everyone)
    unattended = now - gauges.oldest if gauges and gauges.oldest and fed else 0.0
    missing = missing_processes(everyone, now, unattended_seconds=unattended, count_pid_files=True)
    missing += _missing_foundations(settings)
    rows = [_row(process, bodies.get(process.stem), missing) for process in found]
    if web and not web.serves:
        rows.append(ProcessStatus(WEB, web.state, None, next((it for it in missing if it.component == WEB), None)))
    shown = {each for row in rows for each in [row.missing] if each}
    rows += [
        ProcessStatus(each.name, "dead" if each.name in FOUNDATIONS else "missing", None, each)
        for each in missing
        if each not in shown
    ]
    elsewhere = [f"{peer.instance} is alive" for peer in silent if peer.alive and not peer.pid_file]
    return SystemStatus(tuple(rows), tuple(missing), tuple(elsewhere), error, web)


def _missing_foundations(settings: Settings) -> list[MissingProcess]:
    """Return what the others need of the sandbox and has died."""
    dead = dead_foundations(settings)
    remedy = "./scripts/start.sh --sandbox" if len(dead) == len(FOUNDATIONS) else "./scripts/start.sh"
    return [
        MissingProcess(stem, stem, pid, f"{stem}{f' (PID {pid})' if pid else ''} is dead: {remedy}")
        for stem, pid in dead.items()
    ]


def wait_until_ready(settings: Settings, seconds: float) -> SystemStatus:
    """Return the status once every process that lives works, or after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        found = system_status(settings)
        if not sick_processes(found) or time.monotonic() > deadline:
            return found
        time.sleep(POLL_SECONDS)


def sick_processes(system: SystemStatus) -> list[str]:
    """Return which processes live and do not work; what that is, their reasons say."""
    return [
        each.stem
        for each in system.processes
        if each.state not in OK_STATES and not each.missing and each.state != "dead"
    ]


def _read_redis(settings: Settings, bodies: Iterable[Mapping[str, Any]]) -> tuple[Gauges | None, str | None]:
    """Return what Redis says, or why it could not be asked; one that our processes find down is not waited for."""
    states = {it["name"]: it["state"] for body in bodies for it in body["circuit_breakers"]}
    if states.get("redis", "CLOSED") != "CLOSED":
        return None, f"its circuit breaker is {states['redis']}"
    try:
        return read_gauges(open_link(settings.redis_address, "email-ingestion-status")), None
    except EmailIngestionError as error:
        return None, str(error)


def _peer(body: Mapping[str, Any]) -> Peer:
    return Peer(body["component"], body["instance"], body["pid"], alive=True, ready=None, ops_url=None, seen_at=None)


def _row(process: ManagedProcess, body: dict[str, Any] | None, missing: Sequence[MissingProcess]) -> ProcessStatus:
    state = str(body["status"]) if body else ("no answer" if process.pid else "dead")
    why = None if process.pid else next((each for each in missing if each.pid == process.last_pid), None)
    return ProcessStatus(process.stem, state, body, why)


def render_table(system: SystemStatus) -> str:
    """Render the table as text."""
    console = Console()
    with console.capture() as captured:
        if system.processes:
            console.print(_processes(system.processes, console.width))
            for line in (
                *reason_lines(system.processes),
                *notice_lines(system.processes),
            ):  # whole, however narrow the terminal is
                console.print(line, soft_wrap=True, markup=False, highlight=False)
        if system.idle:
            console.print(system.nothing(), soft_wrap=True, markup=False, highlight=False)
        for line in _web_lines(system):
            console.print(line, soft_wrap=True, markup=False, highlight=False)
    return captured.get().rstrip()


def watch(settings: Settings) -> int:
    """Redraw the table until interrupted; return 0."""
    try:
        with Live(_watched(settings), auto_refresh=False) as live:
            while True:
                time.sleep(WATCH_SECONDS)
                live.update(_watched(settings), refresh=True)
    except KeyboardInterrupt:
        return 0


def _watched(settings: Settings) -> Group:
    system = system_status(settings)
    lines = (*reason_lines(system.processes), *notice_lines(system.processes), *_web_lines(system))
    return Group(_processes(system.processes, Console().width), *map(Text, lines))


def _web_lines(system: SystemStatus) -> list[str]:
    """Return where the pages are, if the web process serves."""
    return [f"web: {system.web.url} (PID {system.web.pid})"] if system.web and system.web.serves else []


def reason_lines(statuses: Sequence[ProcessStatus]) -> list[str]:
    """Return one line for each reason why a process is not simply ready."""
    return [f"{status.stem}: {reason}" for status in statuses for reason in status.as_json().get("reasons", ())]


def notice_lines(statuses: Sequence[ProcessStatus]) -> list[str]:
    """Return what mail servers want told, and what they refuse and is done without."""
    accounts = [(status.stem, each) for status in statuses for each in (status.body or {}).get("accounts", ())]
    alerts = [f"{stem}: account {each['name']}: ALERT: {each['alert']}" for stem, each in accounts if each.get("alert")]
    refused = [
        f"{stem}: account {each['name']}: works without {', '.join(each['refused'])}, which the server refuses"
        for stem, each in accounts
        if each.get("refused")
    ]
    return alerts + refused


def _processes(statuses: Sequence[ProcessStatus], width: int) -> Table | Text:
    """Return the table, or a line for each value of it where the terminal is too narrow for a table."""
    made = _table(statuses)
    console = Console(width=UNLIMITED)
    if console.measure(made).minimum <= width:
        return made
    names, columns = [str(each.header) for each in made.columns], [list(each.cells) for each in made.columns]
    blocks = [
        "\n".join(f"{name}: {value}" for name, value in zip(names, row, strict=True) if value)
        for row in zip(*columns, strict=True)
    ]
    return Text("\n\n".join(blocks))


def _table(statuses: Sequence[ProcessStatus]) -> Table:
    shown = Table("Process", "PID", "State", "Up", "Queue", "Dead", "Done", "Breakers")
    for status in statuses:
        body = status.body
        if body is None:
            shown.add_row(status.stem, "", status.state, *[""] * 5)
            continue
        counts = body["statistics"]
        open_breakers = [f"{it['name']} {it['state']}" for it in body["circuit_breakers"] if it["state"] != "CLOSED"]
        shown.add_row(
            status.stem,
            str(body["pid"]),
            status.state,
            _duration(body["uptime_seconds"]),
            _number(body["stream"]["depth"]),
            _number(body["dlq"]["depth"]),
            _number(counts["produced"] if body["component"] == "producer" else counts["processed"]),
            ", ".join(open_breakers) or "closed",
        )
    return shown


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"
