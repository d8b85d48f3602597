"""The command line: which commands there are; each is imported when it is called, so that none waits for another."""

from __future__ import annotations

import sys
from importlib import import_module
from textwrap import wrap
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from email_ingestion import __version__
from email_ingestion.cli.exit_codes import leave

# name: the module in this room, the function or the group in it, and how the help of that begins, for the list of
# commands is shown without importing them. A module's CONTEXT says how it takes arguments.
COMMANDS = {
    "start": (
        "start_stop:start",
        "Start producer and workers and wait until they are ready; what already runs is left alone.",
    ),
    "init": (
        "init:init",
        "Write commented settings, alerts, the dashboard and examples for Prometheus and Alertmanager into a folder.",
    ),
    "producer": ("processes:producer", "Pull mail over IMAP into the Redis Stream, until it is stopped."),
    "worker": (
        "processes:worker",
        "Take mail from the Redis Stream, parse it and deliver it to the sinks, until it is stopped.",
    ),
    "web": ("web:web", "Serve the pages and the read API, until it is stopped."),
    "tokens": ("tokens:tokens", "Make, list and revoke the tokens of the read API."),
    "auth": ("oauth2:oauth2", "Show or refresh the OAuth2 token."),
    "accounts": ("accounts:accounts", "Add, change, pause and remove accounts while the producer runs."),
    "restart": (
        "restart:restart",
        "Restart the producer, the workers or the web process of this machine, each as it was started.",
    ),
    "stop": ("start_stop:stop", "Drain and stop every process of this machine."),
    "status": ("start_stop:status", "Show every process of this machine."),
    "doctor": (
        "diagnostics:doctor",
        "Check settings, folders, ports, Redis, database, sinks, tokens, mail servers and the clock.",
    ),
    "search": ("delivered_mail:search", "Find delivered mail, newest first."),
    "export": ("delivered_mail:export", "Write a delivered message to standard output or a file."),
    "parse": ("parse:parse", "Show the record of messages on disk: fields, text, attachments and defects."),
    "quality": (
        "quality:quality",
        "Count the defects of delivered mail, what its authentication found, unreadable dates and empty bodies.",
    ),
    "reparse": (
        "reparse:reparse",
        "Parse stored mail again where an older parser made its record, and replace the record.",
    ),
    "resend": (
        "resend:resend",
        "Send delivered mail again to a sink that lost its data, or for the first time to one that was added later.",
    ),
    "erase": (
        "erase:erase",
        "Erase messages from database, blob store, stream, dead letters and the files of sinks, for good.",
    ),
    "retention": ("retention:retention", "Say for how long mail is kept, and hold what must not be erased."),
    "blobs": ("storage:blobs", "Look after large messages and attachments."),
    "database": ("storage:database", "Look after the database."),
    "breaker": ("breakers:breaker", "See the circuit breakers of the running processes."),
    "pause": ("control:pause", "Let producer or workers take no new work."),
    "resume": ("control:resume", "Let paused processes go on."),
    "degrade": ("control:degrade", "Serve less for a while."),
    "priority": ("control:priority", "Let workers take only mail of a priority, 0 to 10, of LEAST or more."),
    "set": ("run_time_orders:set_", "Change a setting of the running processes for a while."),
    "feature": ("run_time_orders:feature", "Switch a part of the work off for a while."),
    "sink": ("run_time_orders:sink", "Let one sink wait; the database and the others go on."),
    "log-level": ("control:log_level", "Let the processes of this machine log more or less for a while."),
    "pending": ("stuck_work:pending", "See messages a worker has taken and not finished, set them free or aside."),
    "consumers": ("stuck_work:consumers", "See the workers Redis knows by name, and remove those that are gone."),
    "quarantine": (
        "quarantine:quarantine",
        "See the messages that a mail server does not send, ask again, or accept their loss.",
    ),
    "revoke": ("stuck_work:revoke", "End the handling of a message and make it a dead letter."),
    "backup": (
        "backup:backup",
        "Back up Redis and the database while they are in use, prove the backup by loading it, delete old ones.",
    ),
    "restore": (
        "backup:restore_backup",
        "Restore Redis from a backup, and bring back the messages that the database lacks; nothing in it is removed.",
    ),
    "drain": ("drain_refill:drain", "Write the queue to a file."),
    "refill": ("drain_refill:refill", "Put a drained queue back into Redis."),
    "logs": ("log_viewer:logs", "Print what the processes of this machine logged, by time."),
    "check": (
        "check:check",
        "Say in one line how well something works: OK, WARNING, CRITICAL or UNKNOWN, as monitoring plugins do.",
    ),
    "errors": (
        "log_viewer:errors",
        "Sum up what went wrong, alike by alike: errors in the log files, and dead letters.",
    ),
    "memory": (
        "memory:memory",
        "Watch the memory of live processes for a while: size, growth, and the lines that hold what they allocated.",
    ),
    "starts": (
        "memory:starts",
        "Show when each process of this machine was started, with which version, for how long, and how it ended.",
    ),
    "config": ("diagnostics:config", "See which setting holds and where it comes from."),
    "evidence": ("diagnostics:evidence", "Put together what is known of an incident, without mail or secrets."),
    "audit": ("audit:audit", "See what operators did, and whether the record of it is whole."),
    "incident": ("incident:incident", "Lead an incident: its number, its log, the texts people need."),
    "runbook": (
        "runbook:runbook",
        "Print the section of the runbook for an alert, a number or words; without any, the list of sections.",
    ),
    "redis-cli": ("redis_cli:redis_cli", "Speak to the Redis of the settings with redis-cli."),
    "dlq": ("dlq:dlq", "Look at dead letters, put them back into the stream, export and purge them."),
    "reconcile": ("reconcile:reconcile", "Compare the server's messages with the ledger."),
    "backfill": ("reconcile:backfill", "Fetch the mail of a period that was not delivered yet."),
    "loadtest": ("loadtest:loadtest", "Send generated messages through the running system."),
    "route": ("route:route", "See what the routes of config/settings.toml do, and put a sender aside for a while."),
    "import": ("import_mbox:import_", "Queue the messages of an mbox file that are neither delivered nor queued."),
    "alert": ("alert:alert", "See what rings, tell people, acknowledge and silence."),
    "sandbox": ("sandbox:sandbox", "Run the Gmail sandbox: IMAP, OAuth endpoints and a control API on this machine."),
    "gameday": ("gameday:gameday", "Break the sandbox's stack on purpose."),
}


# What people want to do, and the commands for it: `--help` is one screen. Those that stand nowhere come last.
GROUPS = {
    "Run it": (
        *("init", "start", "stop", "restart", "status", "sandbox"),
        *("producer", "worker", "web", "auth", "accounts"),
    ),
    "Find what is wrong": ("doctor", "check", "errors", "quality", "logs", "memory", "starts", "config", "redis-cli"),
    "On call": ("alert", "incident", "runbook", "evidence", "audit"),
    "Read the mail": ("search", "export", "parse", "route", "tokens"),
    "Get more mail in": ("import", "backfill", "reconcile"),
    "Mend what is stuck": ("dlq", "quarantine", "pending", "consumers", "revoke"),
    "Slow down, hold": (
        *("pause", "resume", "degrade", "priority", "breaker"),
        *("sink", "feature", "set", "log-level"),
    ),
    "Look after data": (
        *("database", "reparse", "resend", "erase", "retention"),
        *("blobs", "backup", "restore", "drain", "refill"),
    ),
    "Try and practise": ("loadtest", "gameday"),
}
MORE = "More"
# typer carries its own copy of click and does not publish this class.
CompletionItem: Any = vars(typer.core)["CompletionItem"]
HEADING_WIDTH, LINE_WIDTH = 20, 78


class Commands(TyperGroup):
    """The table above as a group of commands."""

    def list_commands(self, _ctx: Any) -> list[str]:
        """Return their names, in the table's order."""
        return list(COMMANDS)

    def get_command(self, _ctx: Any, cmd_name: str) -> Any:
        """Return the command, imported now; None when there is none of that name."""
        return _load(cmd_name) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command; to an unknown name, typer says which of these may be meant."""
        self.commands = dict.fromkeys(COMMANDS, TyperCommand(None))
        return super().resolve_command(ctx, args)

    def format_help(self, _ctx: Any, _formatter: Any) -> None:
        """Write one screen: the commands by what they are for. A command's own help says what it does."""
        typer.echo(f"Usage: email-ingestion COMMAND [ARGUMENTS] [OPTIONS]\n\n{self.help}\n")
        for heading, names in command_groups().items():
            for number, line in enumerate(wrap("  ".join(names), LINE_WIDTH - HEADING_WIDTH)):
                typer.echo(f"  {'' if number else heading:<{HEADING_WIDTH}}{line}")
        options = "  ".join(param.opts[0] for param in self.params if param.opts[0].startswith("--"))
        typer.echo(f"\n  {'Options':<{HEADING_WIDTH}}{options}  --help")
        typer.echo("\n`email-ingestion COMMAND --help` says what a command does, with examples.")
        typer.echo("Exit codes: 0 ok, 1 negative answer, 2 failed, 64 usage, 78 settings, 130 Ctrl-C")

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Complete the names of commands without importing them."""
        names = [CompletionItem(name, help=line) for name, (_, line) in COMMANDS.items() if name.startswith(incomplete)]
        return names or super().shell_complete(ctx, incomplete)


def command_groups() -> dict[str, tuple[str, ...]]:
    """Return all commands, by what people want to do."""
    placed = {name for names in GROUPS.values() for name in names}
    rest = tuple(name for name in COMMANDS if name not in placed)
    return GROUPS | ({MORE: rest} if rest else {})


def _load(name: str) -> Any:
    room, _, attribute = COMMANDS[name][0].partition(":")
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
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:  # noqa: FBT003
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> NoReturn:
    """Run the console script; a process that it becomes logs what ends it, as `python producer.py` does."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in {"producer", "worker"} and "--help" not in sys.argv:
        from email_ingestion.cli import processes  # noqa: PLC0415 - only for these two

        del sys.argv[1]
        sys.argv[0] = f"email-ingestion {name}"
        processes.run_process(getattr(processes, name))
    if sys.argv[1:] == ["web"]:
        from email_ingestion.cli.processes import run_process  # noqa: PLC0415
        from email_ingestion.cli.web import serve  # noqa: PLC0415

        del sys.argv[1]
        sys.argv[0] = "email-ingestion web"
        run_process(serve, "web")
    leave(typer.main.get_command(app))
