"""`email-ingestion quality`: how well formed the delivered mail is, by kind of defect and by sender's domain."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from email_ingestion.cli.common import open_delivered, parse_duration
from email_ingestion.cli.exit_codes import NEGATIVE, OK
from email_ingestion.cli.output import Json, say, show
from email_ingestion.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from email_ingestion.ledger.mail_statistics import MailQuality


def quality(
    last: Annotated[str, typer.Option("--last", metavar="SPAN", help="Mail that arrived within: 24h, 7d, 4w.")] = "7d",
    account: Annotated[str | None, typer.Option(help="Only this account, by its configured name.")] = None,
    top: Annotated[int, typer.Option(min=1, max=1000, help="Most sender domains shown.")] = 10,
    as_json: Json = False,
) -> int:
    """Count the defects of delivered mail, what its authentication found, unreadable dates and empty bodies.

    A defect says what the parser had to repair or leave out (docs/parsing.md); the message was delivered all the same.
    Domains with the most defective messages come first. Exit code 1 when no mail arrived in the span.

    Examples:
      email-ingestion quality --last 7d
      email-ingestion quality --last 24h --account default --json
    """
    try:
        since = datetime.now(UTC) - parse_duration(last, "--last")
    except OverflowError:
        raise typer.BadParameter(f"--last {last} is before all dates") from None
    settings = load_settings()
    with open_delivered(settings, account) as ledger:
        found = ledger.statistics.quality(since, account)
    if as_json:
        typer.echo(json.dumps({"since": since.isoformat(), **_as_dict(found, top)}, indent=2))
    elif found.messages:
        _print(found, last, top)
    if not found.messages:
        say(f"no mail arrived within {last}")
    return OK if found.messages else NEGATIVE


def _as_dict(found: MailQuality, top: int) -> dict[str, Any]:
    return {
        "messages": found.messages,
        "defective": found.defective,
        "defective_share": round(found.defective / found.messages, 4) if found.messages else None,
        "unreadable_dates": found.unreadable_dates,
        "empty_bodies": found.empty_bodies,
        "defects": dict(found.defects.most_common()),
        "authentication": {name: dict(counts.most_common()) for name, counts in found.verdicts.items()},
        "domains": _domains(found, top),
    }


def _print(found: MailQuality, last: str, top: int) -> None:
    def part(number: int) -> str:
        return f"{number:,} ({number / found.messages:.1%})"

    typer.echo(
        f"{found.messages:,} messages of the last {last}: {part(found.defective)} with defects, "
        f"{part(found.unreadable_dates)} without a readable date, "
        f"{part(found.empty_bodies)} with an empty body"
    )
    rows = [{"defect": name, "messages": number} for name, number in found.defects.most_common()]
    _section("Defects", rows)
    _section("Authentication", [{"check": name, "found": _counts(counts)} for name, counts in found.verdicts.items()])
    _section("Sender domains", [{**each, "defects": _counts(each["defects"])} for each in _domains(found, top)])


def _section(title: str, rows: list[dict[str, Any]]) -> None:
    if rows:
        typer.echo(f"\n{title}")
        show(rows, as_json=False)


def _domains(found: MailQuality, top: int) -> list[dict[str, Any]]:
    return [_domain(found, name) for name in _worst(found, top)]


def _worst(found: MailQuality, top: int) -> list[str]:
    """Return the domains with the most defective messages, then those with the most messages."""
    return sorted(found.by_domain, key=lambda name: (-found.defective_by_domain[name], -found.by_domain[name], name))[
        :top
    ]


def _domain(found: MailQuality, name: str) -> dict[str, Any]:
    return {
        "domain": name,
        "messages": found.by_domain[name],
        "defective": found.defective_by_domain[name],
        "defects": dict(found.defects_by_domain[name].most_common()) if name in found.defects_by_domain else {},
    }


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in sorted(counts.items(), key=lambda each: -each[1]))
