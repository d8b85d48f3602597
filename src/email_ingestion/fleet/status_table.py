"""The `/status` of every process of this machine, as a table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from email_ingestion.fleet.managed_processes import ask, members
from email_ingestion.settings import Settings

WATCH_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Reported:
    """One process; `body` is what it answers, None when it does not."""

    stem: str
    state: str
    body: dict[str, Any] | None


def statuses(settings: Settings) -> list[Reported]:
    """Ask every process of this machine."""
    found = []
    for member in members(settings):
        body = ask(f"{member.ops_url}/status") if member.pid and member.ops_url else None
        state = str(body["status"]) if body else ("no answer" if member.pid else "dead")
        found.append(Reported(member.stem, state, body))
    return found


def table(reported: Sequence[Reported]) -> str:
    """What an operator reads first."""
    console = Console()
    with console.capture() as captured:
        console.print(_table(reported) if reported else "nothing runs here")
    return captured.get().rstrip()


def watch(settings: Settings) -> int:
    """The table, again and again; returns when interrupted."""
    try:
        with Live(_table(statuses(settings)), auto_refresh=False) as live:
            while True:
                time.sleep(WATCH_SECONDS)
                live.update(_table(statuses(settings)), refresh=True)
    except KeyboardInterrupt:
        return 0


def _table(reported: Sequence[Reported]) -> Table:
    shown = Table("Process", "PID", "State", "Up", "Queue", "Dead", "Done", "Breakers", "Why")
    for each in reported:
        body = each.body
        if body is None:
            shown.add_row(each.stem, "", each.state, *[""] * 6)
            continue
        counts = body["statistics"]
        open_breakers = [f"{it['name']} {it['state']}" for it in body["circuit_breakers"] if it["state"] != "CLOSED"]
        shown.add_row(
            each.stem,
            str(body["pid"]),
            each.state,
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
