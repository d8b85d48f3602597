"""`email-ingestion sandbox`: the Gmail sandbox alone; its options are its own."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from email_ingestion.daemon import PidFile

CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def sandbox(
    context: typer.Context,
    pid_file: Annotated[Path | None, typer.Option(help="Written and locked while it runs.")] = None,
) -> int:
    """Run the Gmail sandbox: IMAP, OAuth endpoints and a control API on this machine; `--help` lists its options."""
    from gmail_sandbox.cli import main  # noqa: PLC0415 - the other commands do without it

    with PidFile(pid_file) if pid_file else nullcontext():
        return main(context.args, prog="email-ingestion sandbox")
