"""The command line: which commands there are."""

from __future__ import annotations

from typing import NoReturn

import typer

from email_ingestion import __version__
from email_ingestion.cli import sandbox, services
from email_ingestion.cli.dlq import dlq
from email_ingestion.cli.exits import leave
from email_ingestion.cli.reconcile import reconcile
from email_ingestion.cli.search import search

app = typer.Typer(
    help="Every message of a Gmail mailbox in your own systems, exactly once in effect.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(services.start)
app.command()(services.stop)
app.command()(services.status)
app.command()(search)
app.add_typer(dlq, name="dlq")
app.command()(reconcile)
app.command(context_settings=sandbox.CONTEXT)(sandbox.sandbox)


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:  # noqa: FBT003
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> NoReturn:
    """Run the console script."""
    leave(typer.main.get_command(app))
