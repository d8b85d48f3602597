"""`email-ingestion reconcile`: is every message delivered, queued or a dead letter; if not, `--repair` queues it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from email_ingestion.app.account import AccountServices, LedgerOnDemand, check_accounts, log_in
from email_ingestion.blobs import open_blobs
from email_ingestion.cli.common import audited, pick_accounts
from email_ingestion.cli.progress import run_with_progress
from email_ingestion.reconcile import ReconcileReport
from email_ingestion.settings import Account, Settings, load_settings
from email_ingestion.stream import Appender, RedisLink, open_link

COLUMNS = (
    *("checked", "delivered", "queued", "dead", "purged", "excluded"),
    *("missing", "repaired", "duplicate", "unexpected"),
)
NAMED = 20  # missing UIDs shown; the JSON report names more


def reconcile(
    repair: Annotated[bool, typer.Option("--repair", help="Queue what is missing.")] = False,
    account: Annotated[str, typer.Option(help="Only this account, by its configured name.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
) -> int:
    """Compare the server's messages with the ledger, the stream and the dead letters.

    Exit code 0 when nothing is missing or all of it was queued, 1 when something is missing, 2 when the comparison
    could not be made. It may run beside the producer and beside itself.

    Examples:
      email-ingestion reconcile
      email-ingestion reconcile --repair
      email-ingestion reconcile --json --account work
    """
    settings = load_settings()
    accounts = pick_accounts(settings, account)
    check_accounts(settings)
    link = open_link(settings.redis_address, "email-ingestion-reconcile")
    ledger = LedgerOnDemand(settings.database_url)
    with closing(ledger()), _noted(settings, accounts, repair=repair) as outcome:
        reports = [
            _of_mailbox(one, settings, link, ledger, repair=repair) for each in accounts for one in each.by_mailbox
        ]
        outcome |= {"missing": _sum(reports, "missing"), "repaired": _sum(reports, "repaired")}
    if as_json:
        typer.echo(json.dumps(_as_dict(reports), indent=2))
    else:
        _show(reports, repair=repair)
    return 0 if all(report.complete for report in reports) else 1


@contextmanager
def _noted(settings: Settings, accounts: Sequence[Account], *, repair: bool) -> Iterator[dict[str, Any]]:
    """Record a repair in the audit log; a mere comparison is not recorded."""
    if not repair:
        yield {}
        return
    with audited(settings.log_dir, "reconcile repair", {"accounts": [each.name for each in accounts]}) as outcome:
        yield outcome


def _of_mailbox(
    account: Account, settings: Settings, link: RedisLink, ledger: LedgerOnDemand, *, repair: bool
) -> ReconcileReport:
    services = AccountServices(account, settings, link, Appender(link), ledger, open_blobs(settings.blob_url))
    with closing(log_in(account, settings.imap_timeout_seconds)) as connection:
        mailbox = connection.examine(connection.find_mailbox(account.imap_mailbox))
        capacity = services.capacity()
        reconciler = services.reconciler(
            connection, mailbox, (lambda: not capacity.reason_to_wait()) if repair else None
        )
        run_with_progress(
            f"comparing {account.name}", reconciler.steps(), lambda: (reconciler.position, reconciler.report.last_uid)
        )
    return reconciler.report


def _as_dict(reports: Sequence[ReconcileReport]) -> dict[str, Any]:
    """Return the sums over all accounts, and each account's report."""
    sums = {name: _sum(reports, name) for name in (*COLUMNS, "ahead")}
    complete = all(report.complete for report in reports)
    return {"complete": complete, **sums, "accounts": [report.as_dict() for report in reports]}


def _sum(reports: Sequence[ReconcileReport], name: str) -> int:
    return sum(report.as_dict()[name] for report in reports)


def _show(reports: Sequence[ReconcileReport], *, repair: bool) -> None:
    table = Table("account", "mailbox", *COLUMNS, "ahead", box=None, pad_edge=False)
    for report in reports:
        counts = report.as_dict()
        table.add_row(report.account, report.mailbox, *(str(counts[name]) for name in (*COLUMNS, "ahead")))
    # As wide as it is: a report that goes into a file or a pipe is not cut.
    Console(width=None if Console().is_terminal else 200, highlight=False).print(table)
    for report in reports:
        for line in _advice(report, repair=repair):
            typer.echo(line)


def _advice(report: ReconcileReport, *, repair: bool) -> list[str]:
    lines = []
    if report.missing:
        named = ", ".join(map(str, report.missing_uids[:NAMED])) + (", …" if report.missing > NAMED else "")
        lines.append(f"{report.account}: missing from {report.mailbox}: UID {named}")
    if report.complete:
        filled = f"; {report.repaired} were missing and are queued now" if report.repaired else ""
        lines.append(f"{report.account}: complete{filled}")
    elif repair:
        left = report.missing - report.repaired
        lines.append(f"{report.account}: {left} could not be queued because the stream is full: repeat it later")
    else:
        lines.append(f"{report.account}: `email-ingestion reconcile --repair` queues the {report.missing} missing")
    return lines
