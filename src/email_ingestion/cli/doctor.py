"""`email-ingestion doctor`: what is wrong, why, and what to do next."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from email_ingestion.doctor.findings import SEVERITY, Finding, worst

COLOURS = {"ok": "green", "degraded": "yellow", "failed": "bold red"}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="The findings as JSON.")] = False) -> int:
    """Check settings, folders, ports, Redis, database, sinks, tokens, mail servers and the clock; change nothing.

    Exit code 0 when all is well, 1 when something works badly, 2 when something does not work.

    Examples:
      email-ingestion doctor
      email-ingestion doctor --json
    """
    from email_ingestion.doctor.checks import examine  # noqa: PLC0415 - help comes without all it looks at

    found: list[Finding] = []
    console = Console(highlight=False, soft_wrap=True)
    for finding in examine():
        found.append(finding)
        if not as_json:
            _show(console, finding)  # at once: the next one may take a while
    verdict = worst(found)
    if as_json:
        typer.echo(json.dumps({"status": verdict, "checks": [asdict(each) for each in found]}, indent=2))
    else:
        bad = sum(each.verdict != "ok" for each in found)
        console.print(f"{verdict}: {bad} of {len(found)} checks need attention" if bad else "ok: nothing is wrong")
    return SEVERITY[verdict]


def _show(console: Console, finding: Finding) -> None:
    line = Text.assemble((f"{finding.verdict:<9}", COLOURS[finding.verdict]), f"{finding.check}: {finding.cause}")
    console.print(line)
    if finding.remedy:
        console.print(Text(f"{'':<9}→ {finding.remedy}"))
