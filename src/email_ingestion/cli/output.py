"""Records on the screen: a table on a terminal; tab separated below a header otherwise; or JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from email_ingestion.shipped_files import as_typed_here

if TYPE_CHECKING:
    from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="JSON.")]


UNLIMITED = 100_000  # columns

Records = Sequence[Mapping[str, Any]]


def table(records: Records) -> Table:
    """Make a table; the keys of the first record are its columns."""
    from rich import box  # noqa: PLC0415 - slow to import, and nothing but a terminal gets a table
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    made = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in records[0]:
        made.add_column(name, overflow="fold")
    for record in records:
        made.add_row(*(Text(printable(value)) for value in record.values()))
    return made


def show(records: Records, *, as_json: bool, make_table: Callable[[Records], Table] | None = None) -> None:
    """Print records: JSON; on a terminal a table; else tabs and a header.

    A table that is too wide for the terminal loses its empty columns, and becomes one line per value if need be.
    """
    from rich.console import Console  # noqa: PLC0415

    if as_json:
        typer.echo(json.dumps(list(records), indent=2))
    elif records and (console := Console()).is_terminal:
        if make_table:
            console.print(make_table(records))
            return
        for made in (table(records), table(filled_columns(records))):
            if console.measure(made, options=console.options.update_width(UNLIMITED)).maximum <= console.width:
                console.print(made)
                return
        typer.echo("\n\n".join(map(_block, records)))
    elif records:
        typer.echo("\t".join(records[0]))
        for record in records:
            typer.echo("\t".join(map(printable, record.values())))


def filled_columns(records: Records) -> Records:
    """Leave out the columns that are empty in every record, so that a table is narrow."""
    names = [name for name in records[0] if any(record[name] is not None for record in records)]
    return [{name: record[name] for name in names} for record in records]


def _block(record: Mapping[str, Any]) -> str:
    width = max(map(len, record)) + 2
    return "\n".join(f"{name:<{width}}{printable(value)}".rstrip() for name, value in record.items())


def report(record: Mapping[str, Any], sentence: str, *, as_json: bool) -> None:
    """Print the result of a command: the record as JSON, or the sentence."""
    typer.echo(json.dumps(record, indent=2) if as_json else as_typed_here(sentence))


def announce(text: str) -> None:
    """Print what was done before more is done, which must not depend on somebody who reads it: `start | head -1`."""
    try:
        typer.echo(as_typed_here(text))
    except BrokenPipeError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def printable(value: Any) -> str:
    """Replace control characters: the sender of a mail must not control the operator's terminal."""
    text = "" if value is None else str(value)
    return "".join(character if character.isprintable() else " " for character in text)


def printable_lines(text: str) -> str:
    """Replace control characters but the ends of lines, for a text of several."""
    return "\n".join(map(printable, text.split("\n")))


def say(text: str) -> None:
    """Print a remark on stderr; the answer goes to stdout."""
    typer.echo(as_typed_here(text), err=True)
