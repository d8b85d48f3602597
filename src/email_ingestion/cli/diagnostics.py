"""`doctor`, `config` and `evidence`: what is wrong here, which settings hold, and what is known of an incident."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from email_ingestion.cli.common import audited
from email_ingestion.cli.exit_codes import NEGATIVE, OK
from email_ingestion.cli.output import Json, say, show
from email_ingestion.doctor.findings import SEVERITY, Finding, worst_verdict
from email_ingestion.errors import EmailIngestionError
from email_ingestion.settings import Settings, load_settings
from email_ingestion.settings.effective_settings import EffectiveSetting, effective_settings
from email_ingestion.shipped_files import as_typed_here

COLOURS = {"ok": "green", "unknown": "cyan", "degraded": "yellow", "failed": "bold red"}

config = typer.Typer(help="See which setting holds and where it comes from.")
evidence = typer.Typer(help="Put together what is known of an incident, without mail or secrets.")


def doctor(as_json: Annotated[bool, typer.Option("--json", help="The findings as JSON.")] = False) -> int:
    """Check settings, folders, ports, Redis, database, sinks, tokens, mail servers and the clock; change nothing.

    Exit code 0 when all is well, 1 when something works badly, 2 when something does not work.

    Examples:
      email-ingestion doctor
      email-ingestion doctor --json
    """
    from email_ingestion.doctor.checks import run_checks  # noqa: PLC0415 - help comes without all it looks at

    found: list[Finding] = []
    console = Console(highlight=False, soft_wrap=True)
    for finding in run_checks():
        found.append(finding)
        if not as_json:
            _print_finding(console, finding)  # at once: the next one may take a while
    verdict = worst_verdict(found)
    if as_json:
        typer.echo(json.dumps({"status": verdict, "checks": [asdict(each) for each in found]}, indent=2))
    else:
        bad = sum(each.verdict != "ok" for each in found)
        console.print(f"{verdict}: {bad} of {len(found)} checks need attention" if bad else "ok: nothing is wrong")
    return SEVERITY[verdict]


def _print_finding(console: Console, finding: Finding) -> None:
    cause = as_typed_here(finding.cause)
    line = Text.assemble((f"{finding.verdict:<9}", COLOURS[finding.verdict]), f"{finding.check}: {cause}")
    console.print(line)
    if finding.remedy:
        console.print(Text(f"{'':<9}→ {as_typed_here(finding.remedy)}"))


@config.callback()
def _config() -> None:
    """See which setting holds and where it comes from."""


@config.command("show")
def show_config(
    *,
    only_set: Annotated[bool, typer.Option("--set", help="Only those that are set somewhere.")] = False,
    as_json: Json = False,
) -> int:
    """Print every setting with its effective value and its origin; secrets are masked.

    Examples:
      email-ingestion config show --set
      email-ingestion config show --json
    """
    settings = load_settings()
    found = [*effective_settings(settings), *_accounts_of_database(settings)]
    show([asdict(each) for each in found if each.origin != "default" or not only_set], as_json=as_json)
    return OK


def _accounts_of_database(settings: Settings) -> Iterator[EffectiveSetting]:
    """Yield the accounts that stand in the database, by name, if there are any; say so when it cannot be asked."""
    from email_ingestion.ledger.accounts import account_rows  # noqa: PLC0415 - help comes without SQLAlchemy

    try:
        rows = account_rows(settings.database_url)
    except EmailIngestionError as error:
        say(f"the accounts of the database are not known: {error}")
        return
    if rows:
        yield EffectiveSetting("ACCOUNTS", ",".join(row.name for row in rows), "the database")


@evidence.callback()
def _evidence() -> None:
    """Put together what is known of an incident, without mail or secrets."""


@evidence.command("collect")
def collect_evidence(
    out: Annotated[Path, typer.Option("--out", "-o", help="A new or empty directory.", show_default=False)],
    as_json: Json = False,
) -> int:
    """Collect logs, masked settings, status, metrics, the state of Redis and what the doctor finds; with their SHA-256.

    What cannot be had is named in the manifest and does not stop the rest. Exit code 1 when the disk had no room for
    some of it, 2 when for nothing.

    Examples:
      email-ingestion evidence collect --out incident-42
    """
    settings, unwritten = load_settings(), list[str]()
    with audited(settings.log_dir, "evidence collect", {"directory": str(out)}, unwritten=unwritten) as outcome:
        manifest = collect_into(settings, out)
        outcome |= {"files": len(manifest["files"]), "missing": manifest["missing"]}
    for name, reason in manifest["missing"].items():
        say(f"{name}: {reason}")
    show(
        [{"directory": str(out), "files": len(manifest["files"]), "missing": len(manifest["missing"])}], as_json=as_json
    )
    for sentence in dict.fromkeys(unwritten):
        say(sentence)
    return (
        NEGATIVE if unwritten or any(path.startswith("cannot write") for path in manifest["missing"].values()) else OK
    )


def collect_into(settings: Settings, folder: Path) -> dict[str, Any]:
    """Collect the evidence and what the doctor finds; return the manifest. Raises as `collect_bundle` does."""
    from email_ingestion.doctor.checks import run_checks  # noqa: PLC0415 - help comes without all they look at
    from email_ingestion.fleet.evidence_bundle import collect_bundle  # noqa: PLC0415

    extra = {"doctor.json": lambda: [asdict(each) for each in run_checks()]}
    return collect_bundle(settings, folder, lambda _: None, extra)
