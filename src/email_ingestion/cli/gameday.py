"""`email-ingestion gameday`: a fault on the sandbox's stack, for a person to practise the runbook on."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated

import typer

from email_ingestion.cli.common import parse_duration
from email_ingestion.cli.exit_codes import NEGATIVE, OK
from email_ingestion.cli.output import Json, report, show
from email_ingestion.daemon import PidFile
from email_ingestion.fleet import gameday_faults
from email_ingestion.settings import load_settings


def gameday(  # noqa: PLR0917 - options
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="What to break.", show_default=False)] = "",
    catalogue: Annotated[bool, typer.Option("--list", help="What can be broken.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Mend what is broken.")] = False,
    ttl: Annotated[str, typer.Option("--ttl", metavar="SPAN", help="Mended by itself after 90s, 15m, 2h.")] = "15m",
    after: Annotated[str, typer.Option("--after", metavar="SPAN", help="With --undo: wait so long first.")] = "",
    as_json: Json = False,
) -> int:
    """Break the sandbox's stack on purpose, so that somebody can practise the runbook on it; never a real one.

    It prints the section to open. The fault ends with its mitigation there, with --undo, or after --ttl.
    Exit code 1 when there is nothing to undo.

    Examples:
      email-ingestion gameday --list
      email-ingestion gameday redis-down
      email-ingestion gameday worker-crash --ttl 30m
      email-ingestion gameday --undo
    """
    if (name != "") + catalogue + undo != 1:
        raise typer.BadParameter("give one of NAME, --list and --undo")
    if catalogue:
        rows = [
            {"name": each, "what": fault.text, "open": _section(each)} for each, fault in gameday_faults.FAULTS.items()
        ]
        show(rows, as_json=as_json)
        return OK
    return _undo(after, as_json=as_json) if undo else _begin(name, ttl, as_json=as_json)


def _begin(name: str, ttl: str, *, as_json: bool) -> int:
    if name not in gameday_faults.FAULTS:
        raise typer.BadParameter(f"{name!r} is not one of: {', '.join(gameday_faults.FAULTS)}")
    seconds = parse_duration(ttl, "--ttl").total_seconds()
    settings = load_settings()
    made = gameday_faults.begin(settings, name, seconds)
    fault = gameday_faults.FAULTS[name]
    until = datetime.fromtimestamp(made.until).astimezone().isoformat(timespec="seconds")
    lines = [
        f"Broken until {until}: {fault.text}.",
        f"Open {_section(name)} and do what it says; the clock runs.",
        fault.hint(settings),
        "Enough? email-ingestion gameday --undo",
    ]
    record = {"name": name, "until": until, "open": _section(name)}
    report(record, "\n".join(filter(None, lines)), as_json=as_json)
    return OK


def _undo(after: str, *, as_json: bool) -> int:
    settings = load_settings()
    if after:
        with PidFile(settings.pid_dir / "gameday.pid"):  # so that `stop` and `--undo` find and end it
            time.sleep(parse_duration(after, "--after").total_seconds())
            mended = gameday_faults.mend(settings)
    else:
        mended = gameday_faults.undo(settings)
    report({"mended": mended}, f"mended: {mended}" if mended else "nothing is broken", as_json=as_json)
    return OK if mended else NEGATIVE


def _section(name: str) -> str:
    return f"{gameday_faults.RUNBOOK}#{gameday_faults.FAULTS[name].section}"
