"""`email-ingestion route …`: what the routes would do with a message; and senders put aside for a while."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from email_ingestion.cli.common import pick_account
from email_ingestion.cli.id_arguments import pick_delivered
from email_ingestion.cli.run_time_orders import block, unblock
from email_ingestion.errors import OperationFailed
from email_ingestion.parsing import parse
from email_ingestion.records import Email, Envelope
from email_ingestion.routing import DATABASE, Decision, Router
from email_ingestion.settings import Settings, load_settings

# What may be an ID: `default:gm:1790`, `gm:1790`, `sha256:0f3a`, `179000`.
ID = re.compile(r"(?:[a-z0-9][a-z0-9_-]*:)?(?:(?:gm|sha256):)?[0-9a-f]+", re.ASCII)

route = typer.Typer(
    help="See what the routes of config/settings.toml do, and put a sender aside for a while.", no_args_is_help=True
)
route.command("block")(block)
route.command("unblock")(unblock)


@route.command("test")
def try_out(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE|ID", help="A message, as .eml, or a delivered one by its ID.", show_default=False),
    ],
    label: Annotated[list[str] | None, typer.Option(help="A Gmail label a file has; may be repeated.")] = None,
    account: Annotated[str, typer.Option(help="The account a file came from, by its configured name.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show where a message would go, with which tags and priority. Exit code 1 when a route skips it.

    A file is taken as received by Gmail, so that conditions on SPF, DKIM and DMARC look at what Gmail wrote into it.

    Examples:
      email-ingestion route test invoice.eml
      email-ingestion route test --label Invoices --json invoice.eml
      email-ingestion route test default:gm:1790000000000000001
    """
    settings = load_settings()
    account = pick_account(settings, account).name if account else settings.all_accounts[0].name
    router = Router(settings.routes, settings.sinks[1:])
    decision = router.decide(_delivered(settings, str(file)) or _from_file(file, account, label or []))
    _show(decision, as_json=as_json)
    raise typer.Exit(int(decision.skipped))


def _from_file(file: Path, account: str, labels: list[str]) -> Email:
    raw = _read(file)
    return parse(_envelope(raw, account, labels), raw)


def _delivered(settings: Settings, part: str) -> Email | None:
    """Return the delivered message that `part` means, with its labels; None when it is no ID of one, or a file."""
    if Path(part).exists() or not ID.fullmatch(part):
        return None
    from email_ingestion.blobs import open_blobs  # noqa: PLC0415
    from email_ingestion.ledger.store import content_of, open_existing_ledger  # noqa: PLC0415 - a file needs no SQLAlchemy

    with closing(open_existing_ledger(settings.database_url)) as ledger:
        identity = pick_delivered(ledger, part)
        found = ledger.stored_facts(identity) if identity else None
        if found is None:
            raise OperationFailed(f"{part} is neither a file nor in the database: email-ingestion search finds IDs")
        return parse(found.envelope, content_of(found.raw_ref, ledger, open_blobs(settings.blob_url)))


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
