"""`email-ingestion check …`: how well the service works, for people and for monitoring plugins."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from email_ingestion.cli.common import parse_duration
from email_ingestion.cli.output import Json, printable
from email_ingestion.settings import load_settings

Name = Literal["errors", "latency", "queue", "breakers", "workers", "database", "volume", "all"]


def check(
    name: Annotated[Name, typer.Argument(help="What to look at.")],
    last: Annotated[str, typer.Option("--last", metavar="SPAN", help="Over how long: 10m, 24h, 7d.")] = "30m",
    as_json: Json = False,
) -> int:
    """Say in one line how well something works: OK, WARNING, CRITICAL or UNKNOWN, as monitoring plugins do.

    Exit code 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN: it could not be looked at. `errors` are attempts that failed,
    against messages delivered; `latency` is the time from arrival at the mail server to the row, in percentiles;
    `volume` compares the mail of the last hour with the same hour of the last four weeks, for each account. The limits
    are the thresholds of config/alerts.yml, so that a check and an alert do not disagree.

    Examples:
      email-ingestion check errors --last 30m
      email-ingestion check all --json
    """
    from email_ingestion.doctor.service_checks import EXIT_CODES, run_check, worst  # noqa: PLC0415 - slow to load

    results = run_check(name, load_settings(), parse_duration(last, "--last"))
    level = worst(results)
    if as_json:
        body = [
            {"name": each.name, "level": each.level, "text": each.text, "values": dict(each.values)} for each in results
        ]
        typer.echo(json.dumps({"level": level, "checks": body}, indent=2))
    else:
        for each in results:
            typer.echo(printable(each.line))
    return EXIT_CODES[level]
