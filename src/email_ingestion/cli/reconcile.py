"""`reconcile` and `backfill`: compare a mailbox with the ledger, and fetch the mail of a period."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from email_ingestion.app.account import AccountServices, LedgerOnDemand, check_accounts, log_in
from email_ingestion.blobs import open_blobs
from email_ingestion.cli.common import audited, pick_accounts
from email_ingestion.cli.output import show
from email_ingestion.cli.progress_bars import run_with_progress
from email_ingestion.cli.reconcile_sink import compare
from email_ingestion.errors import OperationFailed
from email_ingestion.ledger.maintenance import describe_ledger
from email_ingestion.ledger.store import open_ledger
from email_ingestion.mailbox.uid_listing import DateRange
from email_ingestion.producer.backpressure import HISTORY_SHARE, DownloadBudget
from email_ingestion.reconcile import ReconcileReport
from email_ingestion.reconcile.against_list import compare_with_list
from email_ingestion.reconcile.id_list import UnreadableList, read_names
from email_ingestion.settings import Account, Settings, load_settings
from email_ingestion.stream import Appender, RedisLink, open_link

COLUMNS = (
    *("checked", "delivered", "queued", "dead", "purged", "excluded", "accepted"),
    *("missing", "repaired", "duplicate", "unexpected", "altered"),
)
NAMED = 20  # missing UIDs shown; the JSON report names more


def reconcile(
    *,
    repair: Annotated[bool, typer.Option("--repair", help="Queue what is missing.")] = False,
    against: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Compare with this list of another system instead; - is standard input."),
    ] = None,
    sink: Annotated[
        str, typer.Option(metavar="NAME", help="Compare what this sink of SINKS has with what it was given instead.")
    ] = "",
    send_again: Annotated[bool, typer.Option("--resend", help="With --sink: send what is not there again.")] = False,
    presence: Annotated[
        bool, typer.Option("--presence", help="With --sink: compare identities only, and read no bytes.")
    ] = False,
    account: Annotated[str, typer.Option(help="Only this account, by its configured name.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
) -> int:
    """Compare the server's messages with the ledger, the stream and the dead letters.

    With --against, compare the ledger with a list that another system exported, one Message-ID or `email_id` a line:
    how many of ours are missing there, and how many there are not ours; exit code 1 only if some of ours are missing.
    A table with such a column, JSON lines and an mbox will do too, in any encoding (docs/completeness.md).

    With --sink, compare what a sink has with what it was given: what is missing, altered, not ours and twice, by
    account and month. --resend sends exactly what is missing or altered again.

    Exit code 0 when nothing is missing or all of it was queued or sent again, 1 when something is missing or altered,
    2 when the comparison could not be made, or not of everything. It may run beside the producer and beside itself.

    Examples:
      email-ingestion reconcile
      email-ingestion reconcile --repair
      email-ingestion reconcile --json --account work
      email-ingestion reconcile --against ids.txt
      email-ingestion reconcile --sink webhook --resend
    """
    settings = load_settings()
    if sink:
        if repair or against or account:
            raise typer.BadParameter("--sink goes with --resend, --presence and --json alone")
        return compare(settings, sink, send_again=send_again, presence=presence, as_json=as_json)
    if send_again or presence:
        raise typer.BadParameter("--resend and --presence go with --sink")
    accounts = pick_accounts(settings, account)
    if against:
        if repair:
            raise typer.BadParameter("--repair queues what the server has; with --against nothing is changed")
        return _compare_with_list(settings, accounts, against, as_json=as_json)
    check_accounts(accounts)
    link = open_link(settings.redis_address, "email-ingestion-reconcile")
    ledger = LedgerOnDemand(settings.database_url)
    with closing(ledger()), _audited_repair(settings, accounts, repair=repair) as outcome:
        reports = [
            _reconcile_mailbox(one, each.other_mailboxes(one), settings, link, ledger, repair=repair)
            for each in accounts
            for one in each.by_mailbox
        ]
        outcome |= {"missing": _sum(reports, "missing"), "repaired": _sum(reports, "repaired")}
    if as_json:
        typer.echo(json.dumps(_as_dict(reports), indent=2))
    else:
        _show(reports, repair=repair)
    return 0 if all(report.complete for report in reports) else 1


def _compare_with_list(settings: Settings, accounts: Sequence[Account], file: Path, *, as_json: bool) -> int:
    """Compare the ledger with a file; return 1 when some of our messages are missing there."""
    if (missing := describe_ledger(settings.database_url)).endswith("the worker makes it"):
        raise OperationFailed(f"there is nothing to compare with: {missing}")
    with closing(open_ledger(settings.database_url)) as ledger, _open_list(file) as lines:
        try:
            comparison = compare_with_list(ledger, read_names(lines, str(file)), [each.name for each in accounts])
        except UnreadableList as error:
            raise typer.BadParameter(str(error)) from error
    if comparison.lines and not comparison.found:
        typer.echo(f"not one of {comparison.lines} names is ours: is {file} a list of Message-IDs?", err=True)
    report = comparison.as_dict()
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        show([{**row, "account": row["account"] or "(none of ours)"} for row in report["accounts"]], as_json=False)
        for what in ("month", "label"):
            counts = list(report[f"missing_by_{what}"].items())
            if counts:
                typer.echo(f"missing by {what}: " + ", ".join(f"{name} {count}" for name, count in counts[:NAMED]))
        for name in comparison.named[:NAMED]:
            typer.echo(f"missing there: {name}")
        if comparison.missing > NAMED:
            typer.echo(f"… {comparison.missing - NAMED} more; --json names {len(comparison.named)}")
    return 1 if comparison.missing else 0


@contextmanager
def _open_list(file: Path) -> Iterator[IO[bytes]]:
    if str(file) == "-":
        yield sys.stdin.buffer
        return
    try:
        stream = file.open("rb")
    except OSError as error:
        raise typer.BadParameter(f"--against: cannot read {file}: {error.strerror}") from error
    with stream:
        yield stream


@contextmanager
def _audited_repair(settings: Settings, accounts: Sequence[Account], *, repair: bool) -> Iterator[dict[str, Any]]:
    """Record a repair in the audit log; a mere comparison is not recorded."""
    if not repair:
        yield {}
        return
    with audited(settings.log_dir, "reconcile repair", {"accounts": [each.name for each in accounts]}) as outcome:
        yield outcome


def _reconcile_mailbox(
    account: Account,
    others: tuple[str, ...],
    settings: Settings,
    link: RedisLink,
    ledger: LedgerOnDemand,
    *,
    repair: bool,
) -> ReconcileReport:
    blobs = open_blobs(settings.blob_url)
    services = AccountServices(account, settings, link, Appender(link), ledger, blobs, other_mailboxes=others)
    with closing(log_in(account, settings.imap_timeout_seconds)) as connection:
        mailbox = connection.examine(connection.find_mailbox(account.imap_mailbox))
        capacity = services.capacity()
        reconciler = services.reconciler(
            connection, mailbox, (lambda: not capacity.reason_to_wait()) if repair else None
        )
        run_with_progress(
            f"comparing {account.name}", reconciler.steps(), lambda: (reconciler.position, mailbox.exists)
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
    names = (*COLUMNS, "ahead")
    rows = [
        {"account": report.account, "mailbox": report.mailbox, **{name: report.as_dict()[name] for name in names}}
        for report in reports
    ]
    show(rows, as_json=False)
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
    else:
        lines += _advice_on_missing(report, repair=repair)
    if report.accepted:
        lines.append(
            f"{report.account}: {report.accepted} accepted as lost; `email-ingestion quarantine list` has them"
        )
    return lines


def _advice_on_missing(report: ReconcileReport, *, repair: bool) -> Iterator[str]:
    if report.unsent:
        say = "the server lists but does not send; `email-ingestion quarantine list` says why"
        yield f"{report.account}: {report.unsent} of the missing {say}"
    left = report.missing - report.repaired - report.unsent
    if left and repair:
        yield f"{report.account}: {left} could not be queued because the stream is full: repeat it later"
    elif left:
        yield f"{report.account}: `email-ingestion reconcile --repair` queues the {left} missing"


def backfill(
    since: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], metavar="YYYY-MM-DD", help="From this day on.")],
    until: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], metavar="YYYY-MM-DD", help="Up to this day, included.")
    ] = None,
    label: Annotated[str, typer.Option(help="Only mail with this Gmail label.")] = "",
    account: Annotated[str, typer.Option(help="Only this account, by its configured name.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="The counts as JSON.")] = False,
) -> int:
    """Fetch the mail of a period that was not delivered yet, newest first, and queue it.

    What is delivered, queued or a dead letter is skipped, so it may be repeated, and may run beside the producer. It
    waits while the stream is full, and ends with exit code 2 when four fifths of IMAP_BYTES_PER_DAY are used up: run
    it again the next day.

    Examples:
      email-ingestion backfill --since 2024-01-01
      email-ingestion backfill --since 2023-01-01 --until 2023-12-31 --label Receipts
      email-ingestion backfill --since 2024-06-01 --account work --json
    """
    if until and until < since:
        raise typer.BadParameter("--until must not be before --since")
    settings = load_settings()
    accounts = pick_accounts(settings, account)
    check_accounts(accounts)
    period = DateRange(since.date(), until.date() if until else None, label or None)
    details = {"accounts": [each.name for each in accounts], "since": str(period.since)}
    link = open_link(settings.redis_address, "email-ingestion-backfill")
    ledger = LedgerOnDemand(settings.database_url)
    with closing(ledger()), audited(settings.log_dir, "backfill", details) as outcome:
        counts = [
            _backfill_mailbox(one, settings, link, ledger, period) for each in accounts for one in each.by_mailbox
        ]
        outcome |= {"queued": sum(each["queued"] for each in counts)}
    if as_json:
        typer.echo(json.dumps(counts, indent=2))
    else:
        for each in counts:
            typer.echo(
                "{account}, {mailbox}: {found} messages in the period, {queued} of them queued now".format(**each)
            )
    return 0


def _backfill_mailbox(
    account: Account, settings: Settings, link: RedisLink, ledger: LedgerOnDemand, period: DateRange
) -> dict[str, Any]:
    services = AccountServices(account, settings, link, Appender(link), ledger, open_blobs(settings.blob_url))
    budget = services.budget()
    with closing(log_in(account, settings.imap_timeout_seconds)) as connection:
        if period.label and not connection.is_gmail:
            raise OperationFailed(f"--label is for Gmail, which the server of the account {account.name} is not")
        mailbox = connection.examine(connection.find_mailbox(account.imap_mailbox))
        made = services.backfill(connection, mailbox, lambda size: _wait_for_capacity(services, budget, size))
        try:
            run_with_progress(f"fetching {account.name}", made.steps(period), lambda: (made.checked, made.found))
        finally:
            budget.correct(connection.received_bytes, last=True)
    return {"account": account.name, "mailbox": mailbox.name, "found": made.found, "queued": made.queued}


def _wait_for_capacity(services: AccountServices, budget: DownloadBudget, size: int) -> None:
    services.capacity().wait()
    if not budget.reserve(size, HISTORY_SHARE):
        raise OperationFailed("the part of IMAP_BYTES_PER_DAY that old mail may use is used up: run it again tomorrow")
