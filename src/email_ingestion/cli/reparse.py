"""`reparse`: bring the records of delivered mail up to what this version's parser reads."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from email_ingestion.cli.common import audited, open_delivered
from email_ingestion.cli.exit_codes import NEGATIVE, OK
from email_ingestion.cli.output import Json, printable, say, show
from email_ingestion.cli.progress_bars import progress
from email_ingestion.settings import Settings, load_settings

if TYPE_CHECKING:
    from email_ingestion.ledger.store import Ledger
    from email_ingestion.reparse import Reparser, ReparseSummary

NICE = 10  # live mail's processes come first
MAX_PROCESSES = 4
NAMED = 20  # messages that could not be parsed; --json names all


def reparse(
    since: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], metavar="YYYY-MM-DD", help="Only mail that arrived from this day (UTC) on."),
    ] = None,
    account: Annotated[str, typer.Option(help="Only this account, by its configured name.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing, say what would change.")] = False,
    only_changed: Annotated[
        bool, typer.Option("--only-changed", help="Write nothing to rows that stay as they are, not even the version.")
    ] = False,
    current_too: Annotated[
        bool, typer.Option("--all", help="Also what this parser read: after a change of routes.")
    ] = False,
    *,
    as_json: Json = False,
) -> int:
    """Parse stored mail again where an older parser made its record, and replace the record.

    The row becomes what a delivery today would write, with the tags of today's routes, and search finds it; place,
    labels, raw message and deliveries stay. No sink gets anything. It may run beside everything, waits while mail
    waits, and goes on where it was when it is given again. Exit code 1 when a message could not be parsed.

    Examples:
      email-ingestion reparse --only-changed --dry-run
      email-ingestion reparse --since 2024-01-01 --account work
    """
    from email_ingestion.ledger.record_updates import RecordChoice  # noqa: PLC0415 - help comes without SQLAlchemy

    settings = load_settings()
    choice = RecordChoice(account or None, since.replace(tzinfo=UTC) if since else None, current_too)
    os.nice(NICE)
    with open_delivered(settings, account or None) as ledger:
        made = _reparser(settings, ledger)
        details = {"account": account, "since": since and str(since.date()), "all": current_too}
        with audited(settings.log_dir, "reparse", details, dry_run=dry_run) as outcome:
            with progress("reparsing", ledger.records.count(choice)) as advance:
                for done in made.run(choice, dry_run=dry_run, only_changed=only_changed):
                    advance(done)
            found = made.summary
            outcome |= {"checked": found.checked, "changed": found.changed, "failed": len(found.failed)}
    _show(found, dry_run=dry_run, as_json=as_json)
    return NEGATIVE if found.failed else OK


def _reparser(settings: Settings, ledger: Ledger) -> Reparser:
    from email_ingestion.blobs import open_blobs  # noqa: PLC0415
    from email_ingestion.reparse import LiveMail, Reparser  # noqa: PLC0415
    from email_ingestion.routing import Router  # noqa: PLC0415
    from email_ingestion.stream import count_waiting, open_link  # noqa: PLC0415

    link = open_link(settings.redis_address, "email-ingestion-reparse")
    return Reparser(
        ledger,
        open_blobs(settings.blob_url),
        Router(settings.routes, settings.sinks[1:]),
        threshold=settings.blob_threshold_bytes,
        processes=min(MAX_PROCESSES, os.cpu_count() or 1),
        timeout=settings.worker_handle_timeout_seconds,
        let_live_mail_pass=LiveMail(lambda: count_waiting(link)).let_pass,
    )


def _show(found: ReparseSummary, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        counts = {"checked": found.checked, "changed": found.changed, "unchanged": found.unchanged}
        names = {"fields": dict(found.fields.most_common()), "examples": found.examples, "failed": found.failed}
        typer.echo(json.dumps({"dry_run": dry_run} | counts | names, indent=2))
        return
    would = "would change" if dry_run else "changed"
    typer.echo(
        f"{found.checked:,} records looked at: {found.changed:,} {would}, {found.unchanged:,} stay as they are, "
        f"{len(found.failed):,} could not be parsed"
    )
    fields = found.fields.most_common()
    show(
        [{"field": name, "records": count, "such as": ", ".join(found.examples[name])} for name, count in fields],
        as_json=False,
    )
    for email_id, reason in list(found.failed.items())[:NAMED]:
        say(f"{printable(email_id)}: {reason}; its record stays as it was")
