"""`search` and `export`: find delivered mail, and write a message as it came or as the record made of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from email_ingestion.atomic_files import atomic_write
from email_ingestion.cli.output import printable
from email_ingestion.errors import OperationFailed
from email_ingestion.settings import load_settings

if TYPE_CHECKING:
    from email_ingestion.ledger.model import StoredFacts
    from email_ingestion.ledger.search import Hit


def search(
    words: Annotated[list[str], typer.Argument(help="What the mail must contain.", show_default=False)],
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Most messages shown.")] = 20,
    account: Annotated[str | None, typer.Option(help="Only this account, by its configured name.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list.")] = False,
) -> None:
    """Find delivered mail, newest first. Exit code 0 when there is some, 1 when there is none.

    Examples:
      email-ingestion search invoice 2026
      email-ingestion search '"quarterly report" anna* -draft'
      email-ingestion search --json --limit 100 example.org
    """
    from email_ingestion.ledger.store import open_ledger  # noqa: PLC0415 - help comes without SQLAlchemy

    with closing(open_ledger(load_settings().database_url)) as ledger:
        hits = ledger.search(" ".join(words), limit, account)
    _show(hits, as_json=as_json)
    raise typer.Exit(0 if hits else 1)


def _show(hits: Sequence[Hit], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([_as_dict(hit) for hit in hits], indent=2))
    elif not hits:
        typer.echo("nothing found", err=True)
    elif (console := Console()).is_terminal:
        console.print(_table(hits))
    else:
        for hit in hits:
            typer.echo("\t".join(map(printable, (hit.email_id, _date(hit), hit.sender, hit.subject, hit.snippet))))


def _as_dict(hit: Hit) -> dict[str, str]:
    return {
        "email_id": hit.email_id,
        "date": hit.date.isoformat(),
        "sender": hit.sender,
        "subject": hit.subject,
        "snippet": hit.snippet,
    }


def _table(hits: Sequence[Hit]) -> Table:
    table = Table("Date (UTC)", "From", "Subject", "Text", expand=True)
    for hit in hits:
        # Text, not str: a subject must not be read as rich's markup.
        table.add_row(_date(hit), *(Text(printable(value)) for value in (hit.sender, hit.subject, hit.snippet)))
    return table


def _date(hit: Hit) -> str:
    return f"{hit.date:%Y-%m-%d %H:%M}"


def export(
    email_id: Annotated[str, typer.Argument(help="The identity, as `search` shows it.", show_default=False)],
    eml: Annotated[bool, typer.Option("--eml", help="The raw message (the default).")] = False,
    record: Annotated[bool, typer.Option("--json", help="The record, attachments included.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A new file instead of the terminal.")] = None,
) -> None:
    """Write a delivered message to standard output or a file. Exit code 1 when it is not in the database.

    Examples:
      email-ingestion export default:gm:1790000000000000001 --eml > message.eml
      email-ingestion export default:gm:1790000000000000001 --json -o message.json
    """
    from email_ingestion.blobs import open_blobs  # noqa: PLC0415
    from email_ingestion.ledger.store import content_of, open_ledger  # noqa: PLC0415 - help comes without SQLAlchemy

    if eml and record:
        raise typer.BadParameter("--eml and --json exclude each other")
    settings = load_settings()
    with closing(open_ledger(settings.database_url)) as ledger:
        found = ledger.stored_facts(email_id)
        if found is None:
            typer.echo(f"{email_id} is not in the database: email-ingestion search finds identities.", err=True)
            raise typer.Exit(1)
        raw = content_of(found.raw_ref, ledger, open_blobs(settings.blob_url))
    _write(_record(found, raw) if record else raw, output)


def _record(found: StoredFacts, raw: bytes) -> bytes:
    from email_ingestion.email_json import as_json  # noqa: PLC0415 - a search parses nothing
    from email_ingestion.parsing import parse  # noqa: PLC0415

    email = parse(found.envelope, raw)
    if found.priority is not None:
        email = replace(email, tags=found.tags, priority=found.priority)
    return json.dumps(as_json(email), indent=2).encode() + b"\n"


def _write(data: bytes, output: Path | None) -> None:
    if output is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    if output.exists():
        raise OperationFailed(f"{output} exists already: name another file")
    try:
        with atomic_write(output) as file:
            file.write(data)
    except OSError as error:
        raise OperationFailed(f"cannot write {output}: {error.strerror}") from error
