"""`email-ingestion alert`: whether notices of the built-in monitor reach anybody."""

from __future__ import annotations

import typer

from email_ingestion.errors import ConfigurationError, OperationFailed
from email_ingestion.ops.channels import Channels, channels_of
from email_ingestion.settings import load_settings

alert = typer.Typer(help="Notices without a Prometheus.", no_args_is_help=True)


@alert.callback()
def _group() -> None:
    """Keep `test` a command of its own, as the only one in its group."""


@alert.command()
def test() -> None:
    """Send a test notice to every channel.

    Exit code 0 when all of them took it, 2 when one did not, 78 when none is configured or one is misspelt.

    Examples:
      email-ingestion alert test
      ALERT_CHANNELS=ntfys://ntfy.example.com/mail email-ingestion alert test
    """
    named = channels_of(load_settings())
    if not named:
        settings = "ALERT_CHANNELS, ALERT_EMAIL_RECIPIENTS or SLACK_ALERT_WEBHOOK"
        raise ConfigurationError(f"nobody would be told: set {settings}; see docs/monitoring.md")
    for setting, url in named:
        if not Channels([(setting, url)]).send("email-ingestion: a test", "Notices of email-ingestion reach you here."):
            raise OperationFailed(f"{setting} did not take the notice: check the address and the credentials in it")
    typer.echo(f"{len(named)} channel(s) took the test notice")
