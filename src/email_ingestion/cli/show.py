"""Records on the screen: a table on a terminal, tab separated otherwise, or JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

Json = Annotated[bool, typer.Option("--json", help="JSON.")]


def show(records: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """All of them; their keys are the columns."""
    if as_json:
        typer.echo(json.dumps(list(records), indent=2))
    elif records and (console := Console()).is_terminal:
        table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
        for name in records[0]:
            table.add_column(name, overflow="fold")
        for record in records:
            table.add_row(*(Text(printable(value)) for value in record.values()))
        console.print(table)
    else:
        for record in records:
            typer.echo("\t".join(map(printable, record.values())))


def printable(value: Any) -> str:
    """Without control characters: whoever writes to us shall not write to the operator's terminal."""
    text = "" if value is None else str(value)
    return "".join(character if character.isprintable() else " " for character in text)


def say(text: str) -> None:
    """A remark, beside the answer on stdout."""
    typer.echo(text, err=True)
