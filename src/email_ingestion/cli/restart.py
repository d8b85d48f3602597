"""`email-ingestion restart`: producer, workers or the web process again, as they were started."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from email_ingestion.cli.common import audited
from email_ingestion.cli.exit_codes import NEGATIVE, OK
from email_ingestion.cli.output import announce, say
from email_ingestion.fleet.managed_processes import ProcessesNotStarted
from email_ingestion.fleet.restart import restart as restart_processes
from email_ingestion.settings import load_settings


def restart(
    component: Annotated[
        Literal["producer", "worker", "web"],
        typer.Argument(help="Which processes of this machine.", show_default=False),
    ],
    rolling: Annotated[
        bool, typer.Option("--rolling", help="One worker after the other: delivery does not pause.")
    ] = False,
) -> int:
    """Restart the producer, the workers or the web process of this machine, each as it was started.

    With --rolling the next worker is stopped when the one before is ready again; where there is only one, a further
    worker delivers meanwhile. Exit code 1 when one does not come up: those after it were left alone. Who is logged in
    to the pages logs in again. What systemd or Kubernetes looks after is restarted there.

    Examples:
      email-ingestion restart worker --rolling
      email-ingestion restart producer
      email-ingestion restart web
    """
    settings = load_settings()
    with audited(settings.log_dir, "restart", {"component": component, "rolling": rolling}) as outcome:
        try:
            outcome["restarted"] = restart_processes(settings, component, rolling=rolling, say=announce)
        except ProcessesNotStarted as error:
            outcome["failed"] = sorted(error.failures)
            say(str(error))
            return NEGATIVE
    return OK
