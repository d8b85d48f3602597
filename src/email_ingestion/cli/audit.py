"""`email-ingestion audit …`: who changed what, who read which mail, and whether the record of it is whole."""

from __future__ import annotations

import json
import time
from collections import deque
from datetime import datetime
from typing import Annotated, Any

import typer

from email_ingestion.cli.common import parse_duration
from email_ingestion.cli.output import Json, say, show
from email_ingestion.ops.audit_log import PREVIOUS, read_audit, verify_audit
from email_ingestion.settings import log_dir

audit = typer.Typer(no_args_is_help=True, help="See what operators did, and whether the record of it is whole.")
COLUMNS = ("timestamp", "user", "action", "result")
SHOWN = 3  # of many values
OWN = (*COLUMNS, "pid", "instance", PREVIOUS)


@audit.command("list")
def list_(
    action: Annotated[str, typer.Option(help="Only actions that begin so: `dlq`, `admin pause`.")] = "",
    user: Annotated[str, typer.Option(help="Only what this user did.")] = "",
    last: Annotated[str, typer.Option(help="Only what is younger: 30m, 12h, 7d.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 100,
    as_json: Json = False,
) -> int:
    """Show what operators did and which mail they read, oldest first. Exit code 1 when there is nothing.

    Examples:
      email-ingestion audit list --last 12h
      email-ingestion audit list --action dlq --user ada --json
      email-ingestion audit list --action export --last 7d
    """
    since = time.time() - parse_duration(last, "--last").total_seconds() if last else 0.0
    found = deque[dict[str, Any]](maxlen=limit)
    for record in read_audit(log_dir()):
        fits = str(record.get("action", "")).startswith(action) and user in {"", record.get("user")}
        if fits and _seconds(record) >= since:
            found.append(record)
    if as_json:
        typer.echo(json.dumps(list(found), indent=2))
    else:
        show([_row(record) for record in found], as_json=False)
    if not found:
        say("nothing of that kind stands in the audit log")
    return 0 if found else 1


@audit.command()
def verify(
    head: Annotated[str, typer.Option(help="The hash that an earlier run printed: it must still be there.")] = "",
    as_json: Json = False,
) -> int:
    """Read the whole audit log with its rotated files; exit code 1 when lines were changed, removed or inserted.

    Lines that were cut off the end leave no gap: note the printed hash elsewhere, and give it with --head.

    Examples:
      email-ingestion audit verify
      email-ingestion audit verify --head 3f2a…
    """
    chain = verify_audit(log_dir(), head)
    lost = [f"no line has the hash {head}: lines were cut off, or changed"] if chain.lost_head else []
    problems = chain.breaks + lost
    result = {"lines": chain.lines, "unchained": chain.unchained, "head": chain.head, "problems": problems}
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        for problem in problems:
            typer.echo(problem)
        older = f", the first {chain.unchained} of them from releases that kept no chain" if chain.unchained else ""
        verdict = "NOT whole" if problems else "the chain is whole"
        typer.echo(f"{chain.lines} lines{older}; {verdict}; head {chain.head}")
    return 1 if problems else 0


def _row(record: dict[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in record.items() if name not in OWN and value not in (None, "", [])}
    details = " ".join(f"{name}={_short(value)}" for name, value in rest.items())
    return {name: record.get(name, "") for name in COLUMNS} | {"details": details}


def _short(value: Any) -> Any:
    """Show the first of many values; `--json` has them all."""
    if isinstance(value, list):
        shown = ", ".join(map(str, value[:SHOWN]))
        return f"{shown} and {len(value) - SHOWN} more" if len(value) > SHOWN else shown
    return value


def _seconds(record: dict[str, Any]) -> float:
    try:
        return datetime.fromisoformat(str(record.get("timestamp"))).timestamp()
    except ValueError:
        return 0.0
