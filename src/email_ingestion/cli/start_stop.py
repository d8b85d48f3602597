"""`start`, `stop` and `status` of all processes of this machine; the shell scripts call these commands."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from email_ingestion.cli.common import all_accounts
from email_ingestion.cli.exit_codes import NEGATIVE, OK
from email_ingestion.cli.output import announce, say
from email_ingestion.errors import ConfigurationError, OperationFailed, RedisConnectionError
from email_ingestion.fleet import managed_processes, status_table
from email_ingestion.fleet.web_process import WebStart
from email_ingestion.settings import SANDBOX_PROFILE, Settings, load_settings
from email_ingestion.shipped_files import as_typed_here

if TYPE_CHECKING:
    from email_ingestion.fleet.subprocesses import DetachedProcess

DOCTOR = "`.venv/bin/email-ingestion doctor` checks everything"


def start(
    sandbox: Annotated[
        bool, typer.Option("--sandbox", help="With a Gmail sandbox and a Redis of its own: no account needed.")
    ] = False,
    workers: Annotated[int, typer.Option(min=0, max=64, help="Number of workers.")] = 1,
    web: Annotated[bool, typer.Option("--web/--no-web", help="With the pages and the read API, or without.")] = True,
) -> int:
    """Start producer and workers and wait until they are ready; what already runs is left alone.

    The web process is started with them; they do without it, so of one that does not start it is only said why. Exit
    code 1 when one of the others is not ready, with the reason of each; nothing that was started runs then, what ran
    before goes on. While the sandbox runs, with or without --sandbox, what is missing of it is started.

    Examples:
      email-ingestion start --sandbox
      email-ingestion start --workers 4
    """
    from email_ingestion.fleet import sandbox_stack  # noqa: PLC0415 - `status` and `stop` need no database

    before: set[str] | None = None
    started: dict[str, DetachedProcess] = {}
    pages: WebStart | None = None
    try:
        if sandbox or SANDBOX_PROFILE.exists():
            with sandbox_stack.one_start_at_a_time():
                before = _running_of_sandbox(may_be_none=sandbox)
                sandbox_stack.start_sandbox(announce)
        settings = load_settings()
        _preflight(settings)
        started = managed_processes.start_all(settings, workers, announce)
        pages = WebStart(settings, runs=managed_processes.runs_web(settings)) if web else None
        if sandbox:
            sandbox_stack.wait_until_processed(settings, started)
    except BaseException as error:
        managed_processes.end_started(load_settings(), started)
        if pages:
            pages.end()
        _stop_sandbox(before)
        if not isinstance(error, managed_processes.ProcessesNotStarted):
            raise
        for stem, reason in error.failures.items():
            say(f"{stem} did not start: {reason}")
        return NEGATIVE
    line = pages.wait() if pages else "web was not started: --no-web"
    if sandbox:
        announce(sandbox_stack.summary_screen(settings, line))
        return OK
    if pages and line.startswith("web did not start"):
        say(line)
    return _show_started(settings)


def _show_started(settings: Settings) -> int:
    """Show what runs; what ran before may have to come back first, to a Redis or a sandbox that was just started."""
    found = status_table.wait_until_ready(settings, managed_processes.START_SECONDS + settings.cb_recovery_timeout)
    announce(status_table.render_table(found))
    if not (sick := status_table.sick_processes(found)):
        return OK
    say(f"{', '.join(sick)} {'runs' if len(sick) == 1 else 'run'} and cannot work; the reasons are above")
    return NEGATIVE


def _running_of_sandbox(*, may_be_none: bool) -> set[str]:
    running = set(managed_processes.find_foundations(load_settings()))
    if not running and not may_be_none:
        raise OperationFailed("the sandbox was killed: ./scripts/stop.sh first, or start it again with --sandbox")
    return running


def _stop_sandbox(before: set[str] | None) -> None:
    """Stop what this start has started of the sandbox; `before` ran already."""
    if before is not None:
        managed_processes.stop_foundations(load_settings(), before)


def _preflight(settings: Settings) -> None:
    """Raise now for what a running process would wait for: no token, no Redis."""
    from email_ingestion.app.account import check_accounts  # noqa: PLC0415
    from email_ingestion.app.account_list import accounts_in_files  # noqa: PLC0415
    from email_ingestion.stream import check_reachable  # noqa: PLC0415

    try:
        check_accounts(accounts_in_files(settings) or all_accounts(settings))
        check_reachable(settings.redis_address)
    except RedisConnectionError as error:
        raise OperationFailed(f"{error}; start Redis, or set REDIS_HOST and REDIS_PORT in .env; {DOCTOR}") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}; {DOCTOR}") from error


def stop() -> int:
    """Drain and stop every process of this machine; exit code 0 when nothing is left running."""
    return 0 if managed_processes.stop_all(load_settings(), announce) else 2


def status(
    as_json: Annotated[bool, typer.Option("--json", help="The /status of every process as a JSON list.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again every two seconds, until interrupted.")] = False,
) -> int:
    """Show every process of this machine. Exit code 0 when all are ready.

    1 when one is not, when none runs, or when one that should run does not: it was killed, or mail waits for a worker.
    The web process has no /status: it has a line where it serves, and a row, also with --json, only where it does not.
    With --watch a pipe gets table after table, and with --json a line for each look.

    Examples:
      email-ingestion status
      email-ingestion status --json
    """
    settings = load_settings()
    if watch and sys.stdout.isatty() and not as_json:
        return status_table.watch(settings)
    if watch:
        return _look_again_and_again(settings, as_json=as_json)
    return OK if _look(settings, as_json=as_json, indent=2) else NEGATIVE


def _look_again_and_again(settings: Settings, *, as_json: bool) -> int:
    """Print each look, for a pipe or a file, until interrupted."""
    try:
        while True:
            _look(settings, as_json=as_json, indent=None)
            sys.stdout.flush()
            time.sleep(status_table.WATCH_SECONDS)
    except KeyboardInterrupt:
        return OK


def _look(settings: Settings, *, as_json: bool, indent: int | None) -> bool:
    found = status_table.system_status(settings)
    if as_json:
        typer.echo(json.dumps([each.as_json() for each in found.processes], indent=indent))
    else:
        typer.echo(as_typed_here(status_table.render_table(found)))
    return found.ok
