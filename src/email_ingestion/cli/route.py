"""`email-ingestion route test`: what the routes would do with a message, without doing it."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from email_ingestion.errors import OperationFailed
from email_ingestion.parsing import parse
from email_ingestion.records import Envelope
from email_ingestion.routing import DATABASE, Decision, Router
from email_ingestion.settings import load_settings

route = typer.Typer(help="See what the routes of config/settings.toml do.", no_args_is_help=True)


@route.command("test")
def try_out(
    file: Annotated[Path, typer.Argument(help="A message, as .eml.", show_default=False)],
    label: Annotated[list[str] | None, typer.Option(help="A Gmail label it has; may be repeated.")] = None,
    account: Annotated[str, typer.Option(help="The account it came from, by its configured name.")] = "default",
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show where a message would go, with which tags and priority. Exit code 1 when a route skips it.

    It is taken as received by Gmail, so that conditions on SPF, DKIM and DMARC look at what Gmail wrote into it.

    Examples:
      email-ingestion route test invoice.eml
      email-ingestion route test --label Invoices --json invoice.eml
    """
    settings = load_settings()
    router = Router(settings.routes, settings.sinks[1:])
    raw = _read(file)
    decision = router.decide(parse(_envelope(raw, account, label or []), raw))
    _show(decision, as_json=as_json)
    raise typer.Exit(int(decision.skipped))


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise OperationFailed(f"cannot read {file}: {error.strerror}") from error


def _envelope(raw: bytes, account: str, labels: list[str]) -> Envelope:
    digest = hashlib.sha256(raw).hexdigest()
    now = datetime.now(UTC)
    return Envelope(account, "INBOX", 1, 1, 1, 1, tuple(labels), (), now, len(raw), digest)


def _show(decision: Decision, *, as_json: bool) -> None:
    record = {
        "routes": list(decision.routes),
        "sinks": [DATABASE, *decision.sinks],
        "tags": list(decision.email.tags),
        "priority": decision.email.priority,
        "skipped": decision.skipped,
    }
    if as_json:
        typer.echo(json.dumps(record, indent=2))
        return
    for name, value in record.items():
        shown = ", ".join(value) or "-" if isinstance(value, list) else str(value).lower()
        typer.echo(f"{name + ':':<10} {shown}")
