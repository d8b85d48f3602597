"""The `/status` of every process of this machine, as a table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from email_ingestion.fleet.managed_processes import list_processes
from email_ingestion.settings import Settings

WATCH_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """One process; `body` is its `/status`, None without an answer."""

    stem: str
    state: str
    body: dict[str, Any] | None


def process_statuses(settings: Settings) -> list[ProcessStatus]:
    """Return the status of every process of this machine."""
    found = []
    for process in list_processes(settings):
        body = process.status()
        state = str(body["status"]) if body else ("no answer" if process.pid else "dead")
        found.append(ProcessStatus(process.stem, state, body))
    return found


def render_table(statuses: Sequence[ProcessStatus]) -> str:
    """Render the table as text."""
    console = Console()
    with console.capture() as captured:
        console.print(_table(statuses) if statuses else "nothing runs here")
    return captured.get().rstrip()


def watch(settings: Settings) -> int:
    """Redraw the table until interrupted; return 0."""
    try:
        with Live(_table(process_statuses(settings)), auto_refresh=False) as live:
            while True:
                time.sleep(WATCH_SECONDS)
                live.update(_table(process_statuses(settings)), refresh=True)
    except KeyboardInterrupt:
        return 0


def _table(statuses: Sequence[ProcessStatus]) -> Table:
    shown = Table("Process", "PID", "State", "Up", "Queue", "Dead", "Done", "Breakers", "Why")
    for status in statuses:
        body = status.body
        if body is None:
            shown.add_row(status.stem, "", status.state, *[""] * 6)
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
            "; ".join(body.get("reasons", ())),
        )
    return shown


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"
