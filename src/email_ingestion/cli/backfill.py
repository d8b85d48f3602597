"""`email-ingestion backfill`: the mail of a period through the same pipeline, whatever IMAP_START leaves out."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import datetime
from typing import Annotated, Any

import typer

from email_ingestion.app.account import AccountServices, LedgerOnDemand, check_accounts, log_in
from email_ingestion.blobs import open_blobs
from email_ingestion.cli.common import audited, pick_accounts
from email_ingestion.cli.progress import run_with_progress
from email_ingestion.errors import OperationFailed
from email_ingestion.mailbox.imap_mailbox import DateRange
from email_ingestion.producer.backpressure import HISTORY_SHARE, DownloadBudget
from email_ingestion.settings import Account, Settings, load_settings
from email_ingestion.stream import Appender, RedisLink, open_link


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
    settings = load_settings()
    accounts = pick_accounts(settings, account)
    check_accounts(settings)
    period = DateRange(since.date(), until.date() if until else None, label or None)
    details = {"accounts": [each.name for each in accounts], "since": str(period.since)}
    link = open_link(settings.redis_address, "email-ingestion-backfill")
    ledger = LedgerOnDemand(settings.database_url)
    with closing(ledger()), audited(settings.log_dir, "backfill", details) as outcome:
        counts = [_of_mailbox(one, settings, link, ledger, period) for each in accounts for one in each.by_mailbox]
        outcome |= {"queued": sum(each["queued"] for each in counts)}
    if as_json:
        typer.echo(json.dumps(counts, indent=2))
    else:
        for each in counts:
            typer.echo(
                "{account}, {mailbox}: {found} messages in the period, {queued} of them queued now".format(**each)
            )
    return 0


def _of_mailbox(
    account: Account, settings: Settings, link: RedisLink, ledger: LedgerOnDemand, period: DateRange
) -> dict[str, Any]:
    services = AccountServices(account, settings, link, Appender(link), ledger, open_blobs(settings.blob_url))
    budget = services.budget()
    with closing(log_in(account, settings.imap_timeout_seconds)) as connection:
        if period.label and not connection.is_gmail:
            raise OperationFailed(f"--label is for Gmail, which the server of the account {account.name} is not")
        mailbox = connection.examine(connection.find_mailbox(account.imap_mailbox))
        backfill = services.backfill(connection, mailbox, lambda size: _wait_for_capacity(services, budget, size))
        try:
            run_with_progress(
                f"fetching {account.name}", backfill.steps(period), lambda: (backfill.checked, backfill.found)
            )
        finally:
            budget.correct(connection.received_bytes, last=True)
    return {"account": account.name, "mailbox": mailbox.name, "found": backfill.found, "queued": backfill.queued}


def _wait_for_capacity(services: AccountServices, budget: DownloadBudget, size: int) -> None:
    services.capacity().wait()
    if not budget.reserve(size, HISTORY_SHARE):
        raise OperationFailed("the part of IMAP_BYTES_PER_DAY that old mail may use is used up: run it again tomorrow")
