"""The command line: which commands there are, and how errors leave it.

Exit codes: 0 ok, 1 negative answer, 2 failed, 64 usage, 78 bad configuration. An operator's mistake is one sentence on
stderr, never a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn

import typer

from email_ingestion import __version__
from email_ingestion.cli.search import search
from email_ingestion.errors import ConfigurationError, EmailIngestionError

OK, NEGATIVE, FAILED, USAGE, CONFIGURATION, INTERRUPTED = 0, 1, 2, 64, 78, 130

# typer carries its own copy of click and does not publish this class, the parent of every wrong use.
UsageError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")

app = typer.Typer(
    help="Every message of a Gmail mailbox in your own systems, exactly once in effect.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(search)


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:  # noqa: FBT003
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> NoReturn:
    """Run the console script."""
    from email_ingestion.cli import sandbox, services  # noqa: PLC0415 - registered here to keep `search` quick to start

    app.command()(services.start)
    app.command()(services.stop)
    app.command()(services.status)
    app.command(context_settings=sandbox.CONTEXT)(sandbox.sandbox)
    _leave(typer.main.get_command(app))


def run(function: Callable[..., Any]) -> NoReturn:
    """Run one function as a whole program, as `producer.py` does."""
    program = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    program.command()(function)
    _leave(typer.main.get_command(program))


def _leave(command: Any) -> NoReturn:
    try:
        code = command.main(standalone_mode=False)
    except UsageError as error:
        error.show()
        sys.exit(USAGE)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except ConfigurationError as error:
        _say(error)
        sys.exit(CONFIGURATION)
    except EmailIngestionError as error:
        _say(error)
        sys.exit(FAILED)
    sys.exit(code if isinstance(code, int) else OK)


def _say(error: Exception) -> None:
    text = str(error).strip()
    typer.echo(text if text.endswith((".", "!", "?")) else f"{text}.", err=True)
