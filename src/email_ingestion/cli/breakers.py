"""`email-ingestion breaker`: the circuit breakers of the running processes, seen and held by an operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any
from urllib.parse import quote

import typer

from email_ingestion.cli.common import current_user, parse_duration
from email_ingestion.cli.exit_codes import FAILED, NEGATIVE, OK
from email_ingestion.cli.output import Json, printable, say, show
from email_ingestion.errors import OperationFailed
from email_ingestion.fleet.admin_client import AdminClient, RunningProcess, matching, running_processes
from email_ingestion.settings import Settings, load_settings

COLUMNS = ("name", "state", "forced", "failure_count", "retry_after_seconds", "last_error_type")
Name = Annotated[str, typer.Argument(metavar="NAME", help="redis, imap, oauth2 or a sink.", show_default=False)]
Ttl = Annotated[str, typer.Option("--ttl", metavar="SPAN", help="How long: 90s, 15m, 2h.")]

breaker = typer.Typer(
    help="See the circuit breakers of the running processes, and hold them open or closed for a while."
)


@breaker.command("list")
def list_breakers(as_json: Json = False) -> int:
    """List the breakers of every process of this machine. Exit code 0 when all are closed, 1 when one is not.

    Examples:
      email-ingestion breaker list
      email-ingestion breaker list --json
    """
    rows = _rows(matching(running_processes(load_settings()), lambda _: True, "answers"))
    show(rows, as_json=as_json)
    return OK if all(row["state"] == "CLOSED" for row in rows) else NEGATIVE


@breaker.command("open")
def open_breaker(name: Name, ttl: Ttl = "15m", as_json: Json = False) -> int:
    """Hold a breaker open: nothing is asked of its dependency until the time is over or `auto` is given.

    Examples:
      email-ingestion breaker open imap --ttl 1h
    """
    return _order(name, "OPEN", ttl, lambda row: row["state"] == "OPEN" and row["forced"], as_json=as_json)


@breaker.command("close")
def close_breaker(name: Name, ttl: Ttl = "15m", as_json: Json = False) -> int:
    """Hold a breaker closed; refused while its dependency does not answer.

    Examples:
      email-ingestion breaker close redis
    """
    return _order(name, "CLOSED", ttl, lambda row: row["state"] == "CLOSED" and row["forced"], as_json=as_json)


@breaker.command()
def auto(name: Name, as_json: Json = False) -> int:
    """Leave a breaker to itself again.

    Examples:
      email-ingestion breaker auto imap
    """
    return _order(name, "AUTO", "1s", lambda row: not row["forced"], as_json=as_json)


def _order(name: str, state: str, ttl: str, is_done: Callable[[dict[str, Any]], bool], *, as_json: bool) -> int:
    seconds = parse_duration(ttl, "--ttl").total_seconds()
    settings = load_settings()
    running = matching(running_processes(settings), lambda _: True, "answers")
    processes = [process for process in running if name in _names(process)]
    if not processes:
        known = ", ".join(sorted({each for process in running for each in _names(process)}))
        raise typer.BadParameter(f"no process here has a circuit breaker {printable(name)!r}; there are {known}")
    client, refused = AdminClient(settings, current_user()), False
    for process in processes:
        try:
            client.post(process, f"breakers/{quote(name, safe='')}", {"state": state, "ttl_seconds": seconds})
        except OperationFailed as error:
            say(str(error))
            refused = True
    rows = _read_back(settings, processes, name)
    show(rows, as_json=as_json)
    return OK if not refused and len(rows) == len(processes) and all(map(is_done, rows)) else FAILED


def _read_back(settings: Settings, processes: Sequence[RunningProcess], name: str) -> list[dict[str, Any]]:
    stems = {process.stem for process in processes}
    return [
        row
        for row in _rows([each for each in running_processes(settings) if each.stem in stems])
        if row["name"] == name
    ]


def _rows(processes: Sequence[RunningProcess]) -> list[dict[str, Any]]:
    return [
        {"process": process.stem, **{column: found[column] for column in COLUMNS}}
        for process in processes
        for found in process.body["circuit_breakers"]
    ]


def _names(process: RunningProcess) -> set[str]:
    return {found["name"] for found in process.body["circuit_breakers"]}
