"""`email-ingestion database`: whether the database is sound, and the room back that deleted rows left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from email_ingestion.cli.common import audited
from email_ingestion.cli.exit_codes import NEGATIVE, OK
from email_ingestion.cli.output import Json, show
from email_ingestion.errors import OperationFailed, SinkUnavailable
from email_ingestion.settings import load_settings

database = typer.Typer(help="Look after the database.", no_args_is_help=True)


@database.command()
def check(as_json: Json = False) -> int:
    """Read every page and every reference of the database. Exit code 0 when it is sound, 1 when it is not.

    Deliveries go on meanwhile. A database that is not sound: docs/runbooks/backup_restore.md.

    Examples:
      email-ingestion database check
    """
    from email_ingestion.ledger.upkeep import faults  # noqa: PLC0415 - help comes without SQLAlchemy

    with _patience("reading the database"):
        found = faults(load_settings().database_url)
    show([{"state": "damaged", "fault": each} for each in found] or [{"state": "ok", "fault": ""}], as_json=as_json)
    return NEGATIVE if found else OK


@database.command()
def compact(as_json: Json = False) -> int:
    """Give back the room that deleted rows left, and refresh the planner's numbers.

    SQLite: deliveries wait meanwhile, and as much disk as the database has must be free. PostgreSQL: nothing waits.

    Examples:
      email-ingestion database compact
    """
    from email_ingestion.ledger.upkeep import compact as squeeze  # noqa: PLC0415

    settings = load_settings()
    with audited(settings.log_dir, "database compact", {}) as outcome, _patience("compacting the database"):
        before, after = squeeze(settings.database_url)
        outcome |= {"bytes_before": before, "bytes_after": after}
    if as_json:
        show([{"bytes_before": before, "bytes_after": after}], as_json=True)
    else:
        typer.echo(f"from {before:,} to {after:,} bytes")
    return OK


@contextmanager
def _patience(what: str) -> Iterator[None]:
    """Show on a terminal that it goes on; a database that is away leaves as OperationFailed."""
    try:
        with Console(stderr=True).status(what):
            yield
    except SinkUnavailable as error:
        raise OperationFailed(str(error)) from error
