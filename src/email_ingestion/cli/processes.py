"""The two long-lived processes as commands: `python producer.py` and `python worker.py`."""

from __future__ import annotations

import gc
import re
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from email_ingestion import __version__
from email_ingestion.cli.common import current_user, pick_account
from email_ingestion.cli.exit_codes import run
from email_ingestion.errors import ConfigurationError
from email_ingestion.ops.logs import are_configured, configure_logs, logger
from email_ingestion.ops.raw_output import redirect_output
from email_ingestion.ops.redaction import describe_error, error_type
from email_ingestion.ops.status_records import Component, Identity
from email_ingestion.settings import load_settings, log_dir


def producer(
    auth_setup: Annotated[
        bool, typer.Option("--auth-setup", help="Authorize an account interactively, then exit.")
    ] = False,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="With --auth-setup: print the URL, ask for the redirect URL.")
    ] = False,
    account: Annotated[
        str, typer.Option(help="With --auth-setup: the account's configured name, where there are several.")
    ] = "",
    once: Annotated[bool, typer.Option("--once", help="One pass over every mailbox, then exit.")] = False,
    wait_for_consent: Annotated[
        bool, typer.Option("--wait-for-consent", help="Start without a token and wait until there is one.")
    ] = False,
) -> int:
    """Pull mail over IMAP into the Redis Stream, until it is stopped.

    Examples:
      python producer.py
      python producer.py --once
      python producer.py --auth-setup --no-browser
      python producer.py --wait-for-consent
    """
    settings = load_settings()
    if auth_setup:
        from email_ingestion.app.account_list import keep_consent  # noqa: PLC0415 - of no use to the daemon
        from email_ingestion.oauth2.consent import authorize  # noqa: PLC0415

        chosen = pick_account(settings, account)
        consent = authorize(chosen, typer.echo, _ask if no_browser else None)
        if keep_consent(settings, chosen, consent, current_user()):
            typer.echo("The database has it too: producers on other machines take it up.")
        return 0
    gc.disable()  # nothing of what is loaded now is garbage: 0.08 s; the runner enables it again
    from email_ingestion.app.producer import run_producer  # noqa: PLC0415 - a consent needs no Redis

    return run_producer(settings, once=once, wait_for_consent=wait_for_consent)


def worker(
    instance: Annotated[
        int, typer.Option(min=1, max=500, help="The K-th worker of this host: its ports, files and name follow.")
    ] = 1,
    processes: Annotated[
        int, typer.Option(min=1, max=64, help="So many workers under this command, numbered from --instance on.")
    ] = 1,
    drain: Annotated[bool, typer.Option("--drain", help="Work until the stream is empty, then exit.")] = False,
    min_priority: Annotated[
        int, typer.Option(min=0, max=10, help="For incidents: mail of a lower priority waits in the stream.")
    ] = 0,
) -> int:
    """Take mail from the Redis Stream, parse it and deliver it to the sinks, until it is stopped.

    Examples:
      python worker.py
      python worker.py --instance 2
      python worker.py --processes 4
      python worker.py --drain
      python worker.py --instance 2 --min-priority 8
    """
    if processes > 1:
        from email_ingestion.fleet.managed_processes import run_workers  # noqa: PLC0415 - one worker needs none

        return run_workers(load_settings(), instance, processes, ["--drain"] if drain else [])
    gc.disable()  # as for the producer
    from email_ingestion.app.worker import run_worker  # noqa: PLC0415 - keeps --help quick

    return run_worker(load_settings(), instance, drain=drain, min_priority=min_priority)


def run_process(function: Callable[..., int], component: Component | None = None) -> NoReturn:
    """Run `producer`, `worker` or the web process as a whole program; what ends it is a record of its log as well."""
    identity = _identify(component or function.__name__, sys.argv[1:])
    directory = log_dir()
    redirect_output(directory, identity.stem)

    def log_failure(error: Exception, sentence: str, code: int) -> None:
        if "--auth-setup" not in sys.argv and _open_log(identity, directory, echo=False):
            failed = {"error_type": error_type(error), "message": describe_error(error)}
            logger("process").critical("process_failed", exit_code=code, reason=sentence, **failed)

    try:
        run(function, log_failure, crashes=True)
    except Exception:
        _open_log(identity, directory, echo=True)  # which logs uncaught exceptions
        raise


def _identify(component: str, options: Sequence[str]) -> Identity:
    """Return who would run with these options, before anything has checked them."""
    found = re.search(r"(?:^| )--instance[= ]([0-9]{1,3})(?: |$)", " ".join(options))
    number = int(found[1]) if found and component == "worker" else 1
    suffix = f"-{number}" if component == "worker" else ""
    kind: Component = "worker" if component == "worker" else "web" if component == "web" else "producer"
    return Identity(kind, f"{socket.gethostname()}-{kind}{suffix}", __version__, number)


def _open_log(identity: Identity, directory: Path, *, echo: bool) -> bool:
    """Open the log of a process that ends before it has opened it; return whether there is one."""
    if not are_configured():
        with suppress(ConfigurationError):
            configure_logs(identity, directory, echo=echo)
    return are_configured()


def _ask(prompt: str) -> str:
    sys.stdout.write(prompt)
    sys.stdout.flush()
    return sys.stdin.readline()
