"""`email-ingestion evidence`: everything about an incident that may be shown, in one directory."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from email_ingestion.cli.common import audited
from email_ingestion.cli.exit_codes import OK
from email_ingestion.cli.output import Json, say, show
from email_ingestion.settings import load_settings

evidence = typer.Typer(help="Put together what is known of an incident, without mail or secrets.")


@evidence.callback()
def _evidence() -> None:
    """Put together what is known of an incident, without mail or secrets."""


@evidence.command("collect")
def collect_evidence(
    out: Annotated[Path, typer.Option("--out", "-o", help="A new or empty directory.", show_default=False)],
    as_json: Json = False,
) -> int:
    """Collect logs, masked settings, status, metrics, the state of Redis and what the doctor finds; with their SHA-256.

    What cannot be had is named in the manifest and does not stop the rest.

    Examples:
      email-ingestion evidence collect --out incident-42
    """
    from email_ingestion.doctor.checks import examine  # noqa: PLC0415 - help comes without all they look at
    from email_ingestion.fleet.evidence_bundle import collect  # noqa: PLC0415

    settings = load_settings()
    with audited(settings.log_dir, "evidence collect", {"directory": str(out)}) as outcome:
        manifest = collect(settings, out, lambda _: None, {"doctor.json": lambda: [asdict(each) for each in examine()]})
        outcome |= {"files": len(manifest["files"]), "missing": manifest["missing"]}
    for name, reason in manifest["missing"].items():
        say(f"{name}: {reason}")
    show(
        [{"directory": str(out), "files": len(manifest["files"]), "missing": len(manifest["missing"])}], as_json=as_json
    )
    return OK
