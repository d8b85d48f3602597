"""`email-ingestion loadtest`: load through the real pipeline, and the rates and percentiles it went at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from email_ingestion.cli.common import audited
from email_ingestion.cli.exit_codes import NEGATIVE, OK
from email_ingestion.cli.output import Json
from email_ingestion.settings import load_settings


def loadtest(
    emails: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many messages.", show_default=False)],
    rate: Annotated[
        float | None, typer.Option(min=0.01, help="Messages a second; without it as fast as they are taken.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Send generated messages through the running system and tell how long they took.

    Where the sandbox runs they are delivered into its mailbox and stay there. Anywhere else they are a rehearsal:
    appended to the stream among the mail, parsed, routed and written to the database like mail, but rolled back; they
    leave nothing behind, and no further sink gets them. Exit code 1 when one failed or did not come back.

    Examples:
      email-ingestion loadtest --emails 1000
      email-ingestion loadtest --emails 600 --rate 10 --json
    """
    from email_ingestion.fleet.load_generator import generate_load  # noqa: PLC0415 - help comes without httpx

    settings = load_settings()
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        audited(settings.log_dir, "loadtest", {"emails": emails, "rate": rate}) as outcome,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        bar = progress.add_task("messages at their end", total=emails)
        result = generate_load(settings, emails, rate, lambda done: progress.update(bar, completed=done))
        outcome |= {"delivered": len(result.took), "failed": result.failed, "missing": result.missing}
    summary = result.summary()
    typer.echo(json.dumps(summary, indent=2) if as_json else _as_text(summary))
    return NEGATIVE if result.failed or result.missing else OK


def _as_text(summary: Mapping[str, Any]) -> str:
    lines = [f"{name:<19} {value}" for name, value in summary.items() if not isinstance(value, dict)]
    for name in ("latency_seconds", "queue_wait_seconds"):
        if summary[name]:
            values = "  ".join(f"{part} {value}" for part, value in summary[name].items())
            lines.append(f"{name:<19} {values}")
    return "\n".join(line for line in lines if not line.endswith(" None"))
