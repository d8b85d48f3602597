"""`email-ingestion config`: which setting holds and where it comes from, without its secrets."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from email_ingestion.cli.exit_codes import OK
from email_ingestion.cli.output import Json, show
from email_ingestion.settings import load_settings
from email_ingestion.settings.effective_settings import effective_settings

config = typer.Typer(help="See which setting holds and where it comes from.")


@config.callback()
def _config() -> None:
    """See which setting holds and where it comes from."""


@config.command("show")
def show_config(
    *,
    only_set: Annotated[bool, typer.Option("--set", help="Only those that are set somewhere.")] = False,
    as_json: Json = False,
) -> int:
    """Print every setting with its effective value and its origin; secrets are masked.

    Examples:
      email-ingestion config show --set
      email-ingestion config show --json
    """
    found = effective_settings(load_settings())
    show([asdict(each) for each in found if each.origin != "default" or not only_set], as_json=as_json)
    return OK
