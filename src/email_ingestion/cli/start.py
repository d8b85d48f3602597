"""`start`: producer and workers, and with `--sandbox` all they need; what the shell scripts on every platform call."""

from __future__ import annotations

from typing import Annotated

import typer

from email_ingestion.app.accounts import check_accounts
from email_ingestion.errors import ConfigurationError, OperationFailed, RedisConnectionError
from email_ingestion.fleet import managed_processes as fleet
from email_ingestion.fleet import sandbox_stack as demo
from email_ingestion.fleet import status_table as report
from email_ingestion.settings import SANDBOX_PROFILE, Settings, load_settings
from email_ingestion.stream import check_reachable

DOCTOR = "`.venv/bin/email-ingestion doctor` checks everything"


def start(
    sandbox: Annotated[
        bool, typer.Option("--sandbox", help="With a Gmail sandbox and a Redis of its own: no account needed.")
    ] = False,
    workers: Annotated[int, typer.Option(min=0, max=64, help="Number of workers.")] = 1,
) -> int:
    """Start producer and workers; what already runs is left alone.

    Examples:
      email-ingestion start --sandbox
      email-ingestion start --workers 4
    """
    if sandbox:
        demo.start(typer.echo)
    elif SANDBOX_PROFILE.exists():
        raise OperationFailed("the sandbox is running: ./scripts/stop.sh first, then start against the real mailbox")
    settings = load_settings()
    _preflight(settings)
    fleet.start(settings, workers, typer.echo)
    if sandbox:
        demo.wait_until_processed(settings)
        typer.echo(demo.screen(settings))
    else:
        typer.echo(report.table(report.statuses(settings)))
    return 0


def _preflight(settings: Settings) -> None:
    """Refuse to start what could not begin to work; a running system waits for the same things instead."""
    try:
        check_accounts(settings)
        check_reachable(settings.redis_address)
    except RedisConnectionError as error:
        raise OperationFailed(f"{error}; start Redis, or set REDIS_HOST and REDIS_PORT in .env; {DOCTOR}") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}; {DOCTOR}") from error
