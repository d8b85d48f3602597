"""`stop` and `status`: the processes of this machine."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from email_ingestion.fleet import managed_processes as fleet
from email_ingestion.fleet import status_table as report
from email_ingestion.settings import load_settings


def stop() -> int:
    """Drain and stop every process of this machine; exit code 0 when nothing is left running."""
    return 0 if fleet.stop(load_settings(), typer.echo) else 2


def status(
    as_json: Annotated[bool, typer.Option("--json", help="The /status of every process as a JSON list.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again every two seconds, until interrupted.")] = False,
) -> int:
    """Show every process of this machine. Exit code 0 when all are ready, 1 when one is not or none runs.

    Examples:
      email-ingestion status
      email-ingestion status --json
    """
    settings = load_settings()
    if watch:
        return report.watch(settings)
    found = report.statuses(settings)
    if as_json:
        typer.echo(json.dumps([each.body or {"stem": each.stem, "status": each.state} for each in found], indent=2))
    else:
        typer.echo(report.table(found))
    return 0 if found and all(each.state in {"ready", "degraded"} for each in found) else 1
