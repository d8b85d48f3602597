"""The command line: which commands there are; each is imported when it is called, so that none waits for another."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from email_ingestion import __version__
from email_ingestion.cli.exits import leave

# name: the module in this room, and the function or the group in it; a module's CONTEXT says how it takes arguments
COMMANDS = {
    "start": "start:start",
    "stop": "services:stop",
    "status": "services:status",
    "doctor": "doctor:doctor",
    "search": "search:search",
    "export": "export:export",
    "blobs": "blobs:blobs",
    "database": "database:database",
    "breaker": "breaker:breaker",
    "pause": "control:pause",
    "resume": "control:resume",
    "degrade": "control:degrade",
    "priority": "control:priority",
    "log-level": "control:log_level",
    "pending": "pending:pending",
    "consumers": "consumers:consumers",
    "revoke": "revoke:revoke",
    "drain": "reservoir:drain",
    "refill": "reservoir:refill",
    "logs": "logs:logs",
    "errors": "logs:errors",
    "config": "config:config",
    "evidence": "evidence:evidence",
    "redis-cli": "redis_client:redis_cli",
    "dlq": "dlq:dlq",
    "reconcile": "reconcile:reconcile",
    "backfill": "backfill:backfill",
    "loadtest": "loadtest:loadtest",
    "route": "route:route",
    "import": "takeout:import_",
    "alert": "alert:alert",
    "sandbox": "sandbox:sandbox",
    "gameday": "gameday:gameday",
}


class Commands(TyperGroup):
    """The table above as a group of commands."""

    def list_commands(self, _ctx: Any) -> list[str]:
        """Return their names, in the table's order."""
        return list(COMMANDS)

    def get_command(self, _ctx: Any, cmd_name: str) -> Any:
        """Return the command, imported now; None when there is none of that name."""
        return _load(cmd_name) if cmd_name in COMMANDS else None


def _load(name: str) -> Any:
    room, _, attribute = COMMANDS[name].partition(":")
    module = import_module(f"email_ingestion.cli.{room}")
    found = getattr(module, attribute)
    program = typer.Typer(add_completion=False)
    program.callback()(lambda: None)  # makes it a group, whatever it holds
    if isinstance(found, typer.Typer):
        program.add_typer(found, name=name)
    else:
        program.command(name, context_settings=getattr(module, "CONTEXT", None))(found)
    group: Any = typer.main.get_command(program)
    return group.commands[name]


app = typer.Typer(
    cls=Commands,
    help="Every message of a Gmail mailbox in your own systems, exactly once in effect.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:  # noqa: FBT003
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> NoReturn:
    """Run the console script."""
    leave(typer.main.get_command(app))
