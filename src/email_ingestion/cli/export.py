"""`email-ingestion export`: a delivered message as it came, or as the record made of it."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from email_ingestion.atomic_files import replacing
from email_ingestion.blobs import open_blobs
from email_ingestion.email_json import as_json
from email_ingestion.errors import OperationFailed
from email_ingestion.parsing import parse
from email_ingestion.records import Email
from email_ingestion.settings import load_settings

if TYPE_CHECKING:
    from email_ingestion.ledger.records import Found


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
    from email_ingestion.ledger.store import content_of, open_ledger  # noqa: PLC0415 - help comes without SQLAlchemy

    if eml and record:
        raise typer.BadParameter("--eml and --json exclude each other")
    settings = load_settings()
    with closing(open_ledger(settings.database_url)) as ledger:
        found = ledger.found(email_id)
        if found is None:
            typer.echo(f"{email_id} is not in the database: email-ingestion search finds identities.", err=True)
            raise typer.Exit(1)
        raw = content_of(found.raw_ref, ledger, open_blobs(settings.blob_url))
    _write(json.dumps(as_json(_parsed(found, raw)), indent=2).encode() + b"\n" if record else raw, output)


def _parsed(found: Found, raw: bytes) -> Email:
    email = parse(found.envelope, raw)
    return email if found.priority is None else replace(email, tags=found.tags, priority=found.priority)


def _write(data: bytes, output: Path | None) -> None:
    if output is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    if output.exists():
        raise OperationFailed(f"{output} exists already: name another file")
    try:
        with replacing(output) as file:
            file.write(data)
    except OSError as error:
        raise OperationFailed(f"cannot write {output}: {error.strerror}") from error
