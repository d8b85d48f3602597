"""`email-ingestion search`: finds delivered mail by words of its subject, sender or text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from email_ingestion.settings import load_settings

if TYPE_CHECKING:
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
            typer.echo("\t".join(map(_printable, (hit.email_id, _date(hit), hit.sender, hit.subject, hit.snippet))))


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
        table.add_row(_date(hit), *(Text(_printable(value)) for value in (hit.sender, hit.subject, hit.snippet)))
    return table


def _date(hit: Hit) -> str:
    return f"{hit.date:%Y-%m-%d %H:%M}"


def _printable(value: str) -> str:
    """Without control characters: whoever writes to us shall not write to the operator's terminal."""
    return "".join(character if character.isprintable() else " " for character in value)
