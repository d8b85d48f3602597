"""`email-ingestion import`: an mbox file, as Google Takeout makes it, goes the way of mail from the server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import DownloadColumn

from email_ingestion.app.account import AccountServices, LedgerOnDemand
from email_ingestion.blobs import open_blobs
from email_ingestion.cli.common import audited, pick_account
from email_ingestion.cli.progress_bars import run_with_progress
from email_ingestion.producer import InFlight
from email_ingestion.producer.mbox_import import ImportReport, MboxImport
from email_ingestion.producer.selection import FetchFilter
from email_ingestion.records import Envelope, RawMessage
from email_ingestion.settings import Account, Settings, load_settings, start_of
from email_ingestion.stream import Appender, EntryScanner, RedisLink, open_link

SPAM_AND_TRASH = frozenset(["Spam", "Trash"])


def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.mbox", help="An mbox file, as Takeout makes it.", show_default=False)
    ],
    account: Annotated[str, typer.Option(help="The account it belongs to, where there are several.")] = "",
    spam_and_trash: Annotated[bool, typer.Option("--spam-and-trash", help="Take mail labelled so too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
) -> int:
    """Queue the messages of an mbox file that are neither delivered nor queued, with their labels and their identity.

    Interrupted, it goes on where it was when it is called again with the same file. It may run beside the producer.

    Examples:
      email-ingestion import "All mail Including Spam and Trash.mbox"
      email-ingestion import archive.mbox --account work --json
    """
    settings = load_settings()
    chosen = pick_account(settings, account)
    link = open_link(settings.redis_address, "email-ingestion-import")
    with closing(LedgerOnDemand(settings.database_url)) as ledger:
        made = _import(chosen, settings, link, ledger, file, left_out=frozenset() if spam_and_trash else SPAM_AND_TRASH)
        report = made.report
        with audited(settings.log_dir, "import", {"account": chosen.name, "bytes": report.size}) as outcome:
            run_with_progress("importing", made.steps(), lambda: (report.end_offset, report.size), DownloadColumn())
            outcome.update(report.as_dict())
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        _show(report)
    return 0


def _import(
    account: Account,
    settings: Settings,
    link: RedisLink,
    ledger: LedgerOnDemand,
    path: Path,
    *,
    left_out: frozenset[str],
) -> MboxImport:
    blobs = open_blobs(settings.blob_url)
    appender = Appender(link)
    services = AccountServices(account, settings, link, appender, ledger, blobs)
    in_flight = InFlight(EntryScanner(link, link.keys_for(account.name)), account.name)

    def known_ids(messages: Sequence[RawMessage]) -> set[str]:
        """Return the ids of messages that were queued or dead letters when this began, or are delivered or erased."""
        in_flight.ensure_read()
        identities = {message.envelope.email_id for message in messages}
        queued = {each.envelope.email_id for each in messages if _where(in_flight, each.envelope)}
        return queued | ledger().known_ids(identities - queued) | ledger().erasure.erased_messages(messages)

    return MboxImport(
        account.name,
        path,
        appender=appender,
        blobs=blobs,
        blob_threshold=settings.blob_threshold_bytes,
        fetch_filter=FetchFilter(frozenset(account.imap_exclude_labels) | left_out, start_of(account)),
        known_ids=known_ids,
        wait_for_capacity=services.capacity().wait,
    )


def _where(in_flight: InFlight, envelope: Envelope) -> object:
    if envelope.gm_msgid is not None:
        return in_flight.by_gm_msgid(envelope.gm_msgid)
    return in_flight.by_sha256(envelope.sha256)


def _show(report: ImportReport) -> None:
    if report.start_offset:
        typer.echo(f"went on at byte {report.start_offset} of {report.size}, where the last import of this file ended")
    typer.echo(f"{report.messages} messages read, {report.queued} queued")
    for reason, count in report.excluded.items():
        if count:
            typer.echo(f"{count} left out: {WORDS.get(reason, reason)}")


WORDS = {
    "known": "delivered, queued or erased already",
    "excluded_label": "labelled Spam or Trash, or as IMAP_EXCLUDE_LABELS says",
    "before_start": "older than IMAP_START",
    "too_large": "larger than any Gmail message",
}
