"""`erase`: remove messages wherever they are kept, so that nothing brings them back."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from email_ingestion.cli.common import audited, open_redis, parse_duration, refuse_unknown_account
from email_ingestion.cli.exit_codes import NEGATIVE, OK
from email_ingestion.cli.output import Json, printable, report, say
from email_ingestion.cli.progress_bars import progress
from email_ingestion.settings import Settings, load_settings

if TYPE_CHECKING:
    from email_ingestion.erasure.eraser import ErasureSummary
    from email_ingestion.erasure.mail_selector import MailSelector
    from email_ingestion.ledger.store import Ledger
    from email_ingestion.stream import RedisLink

PLACES = {
    "messages": "messages in the database",
    "attachments": "attachments of theirs",
    "contents": "contents in the database",
    "blobs": "contents in the blob store",
    "stream": "entries of the stream",
    "dead_letters": "dead letters",
    "sink_stream": "entries of the sink `stream`",
    "quarantine": "messages in quarantine",
    "deliveries": "deliveries",
    "places": "further places",
    "purged": "notes that they were given up",
}


def erase(
    *,
    sender: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Mail from this address, or from a domain: @example.org.")
    ] = "",
    address: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Mail from or to this address, or a domain, in any address field.")
    ] = "",
    email_id: Annotated[
        list[str] | None, typer.Option("--id", metavar="ID", help="This message; may be repeated.")
    ] = None,
    older_than: Annotated[str, typer.Option(metavar="AGE", help="Mail that arrived longer ago: 365d, 104w.")] = "",
    account: Annotated[str, typer.Option(help="Only this account, by its configured name.")] = "",
    reapply: Annotated[
        bool, typer.Option("--reapply", help="Erase again what has a tombstone: after a restore, or older code.")
    ] = False,
    scrub: Annotated[
        bool,
        typer.Option("--scrub", help="Then write database and Redis anew: no byte of it is left in their files."),
    ] = False,
    verify: Annotated[
        Path | None, typer.Option(metavar="REPORT", help="Only check the signature of the report of an erasure.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be erased.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask on a terminal.")] = False,
    as_json: Json = False,
) -> int:
    """Erase messages from database, blob store, stream, dead letters and the files of sinks, for good.

    Several conditions must all hold. What is left is a hash of each identity, so that neither the mail server nor an
    import, a replay, a drained queue or a restored backup brings a message back. Contents that other messages have too
    stay. It runs beside producer and workers, and goes on where it was when it was killed and is given again. A signed
    report in ERASURE_DIR says what was removed where, and what stays elsewhere until when.

    Exit code 0 when all of it is erased, 1 when there is none or some could not be erased or looked at.

    Examples:
      email-ingestion erase --sender anna@example.org --dry-run
      email-ingestion erase --address anna@example.org --account work
      email-ingestion erase --id default:gm:1790000000000000001
      email-ingestion erase --sender @example.com --older-than 365d --yes
      email-ingestion erase --scrub
      email-ingestion erase --verify data/erasure/reports/20260131T080000Z-1f0c9a.json
    """
    from email_ingestion.ledger.store import open_ledger  # noqa: PLC0415 - help comes without SQLAlchemy

    if verify:
        return _verify(verify, as_json=as_json)
    chosen = bool(sender or address or email_id or older_than)
    if reapply and (chosen or account):
        raise typer.BadParameter("--reapply takes no choice: it erases again all that was ever erased")
    if scrub and dry_run:
        raise typer.BadParameter("--scrub and --dry-run exclude each other")
    if not chosen and not reapply and not scrub:
        raise typer.BadParameter("say what to erase: --sender, --address, --id or --older-than")
    for option, value in (("--sender", sender), ("--address", address)):
        check_address(option, value)
    before = datetime.now(UTC) - parse_duration(older_than, "--older-than") if older_than else None
    settings, link = open_redis("erase")
    with closing(open_ledger(settings.database_url)) as ledger:
        if account:
            refuse_unknown_account(settings, account, lambda: ledger.count(account))
        ids = _whole_ids(email_id, ledger, link) if email_id else None
        if email_id and not ids and not scrub:
            return show_nothing(dry_run=dry_run, as_json=as_json)
        selector = _selector(sender, address, ids, before, account)
        order = _Order(selector if chosen else None, reapply, scrub, dry_run, yes, as_json)
        return _run(settings, link, ledger, order)


@dataclass(frozen=True, slots=True)
class _Order:
    """The options of the command."""

    selector: MailSelector | None
    reapply: bool
    scrub: bool
    dry_run: bool
    yes: bool
    as_json: bool


def _run(settings: Settings, link: RedisLink, ledger: Ledger, order: _Order) -> int:
    from email_ingestion.app.erasures import new_run, open_eraser, report_erasure, scrub  # noqa: PLC0415

    selector = order.selector
    with open_eraser(settings, link, ledger, new_run()) as eraser:
        if selector and (order.dry_run or (sys.stdin.isatty() and not order.yes)):
            with progress("looking", ledger.count()) as advance:
                for done in eraser.preview(selector):
                    advance(done)
            if order.dry_run:
                return show_erasure(eraser.summary, dry_run=True, as_json=order.as_json)
            if not typer.confirm(f"Erase {eraser.summary.matched:,} messages for good?", err=True):
                say("nothing was erased")
                return NEGATIVE
            eraser.forget_preview()
        details = selector.describe() if selector else {"reapply": order.reapply}
        with audited(settings.log_dir, "erase", {"run": eraser.name, **details, "scrub": order.scrub}) as outcome:
            steps = eraser.erase(selector) if selector else eraser.reapply() if order.reapply else eraser.clean_up()
            with progress("erasing", ledger.count()) as advance:
                for done in steps:
                    advance(done)
            found = eraser.summary
            outcome |= {"matched": found.matched, "removed": dict(+found.removed)}
            if order.scrub:
                with Console(stderr=True).status("writing database and Redis anew"):
                    found.unscrubbed += scrub(settings, link, ledger)
            scrubbed = order.scrub and not found.unscrubbed
            outcome.update(report_erasure(settings, eraser, selector, scrubbed=scrubbed))
    written = _Written(outcome["report"], scrubbed)
    return show_erasure(found, dry_run=False, as_json=order.as_json, reapplied=selector is None, written=written)


@dataclass(frozen=True, slots=True)
class _Written:
    """What a run wrote."""

    report: str | None = None
    scrubbed: bool = False


_NOTHING = _Written()


def _verify(path: Path, *, as_json: bool) -> int:
    from email_ingestion.erasure.report import verify_report  # noqa: PLC0415

    problem = verify_report(load_settings().erasure_dir, path)
    sentence = f"{path} is as this installation wrote it" if problem is None else f"{path}: {problem}"
    report({"report": str(path), "valid": problem is None, "problem": problem}, sentence, as_json=as_json)
    return OK if problem is None else NEGATIVE


def _selector(sender: str, address: str, ids: tuple[str, ...] | None, before: datetime | None, account: str) -> Any:
    from email_ingestion.erasure.mail_selector import MailSelector  # noqa: PLC0415

    return MailSelector(sender or None, address or None, ids, before, account or None)


def check_address(option: str, value: str) -> None:
    """Raise BadParameter for a value that is neither empty nor one address or domain."""
    local, at, domain = value.rpartition("@")
    if value and (not at or not domain or any(each in "<>, \t" for each in domain) or local.endswith("@")):
        raise typer.BadParameter(f"{option} is one address, or a domain: anna@example.org, @example.org")


def _whole_ids(parts: list[str], ledger: Ledger, link: RedisLink) -> tuple[str, ...]:
    """Return the identities that the arguments mean, in the database or in Redis; those of no message are left out."""
    from email_ingestion.app.nightly_scrub import queued_entries  # noqa: PLC0415
    from email_ingestion.cli.id_arguments import pick_delivered, pick_identity  # noqa: PLC0415

    found = {}
    for part in parts:
        identity = pick_delivered(ledger, part)
        identity = identity or pick_identity(part, lambda: {entry.email_id for entry in queued_entries(link)})
        if identity:
            found[identity] = part
        else:
            say(f"{printable(part)} is neither in the database nor in Redis")
    return tuple(found)


def show_nothing(*, dry_run: bool, as_json: bool) -> int:
    """Print the record of a run that had nothing to look for, where one is asked for; return the exit code."""
    from email_ingestion.erasure.eraser import ErasureSummary  # noqa: PLC0415 - help comes without SQLAlchemy

    if as_json:
        typer.echo(json.dumps(_record(ErasureSummary(), [], dry_run=dry_run) | asdict(_NOTHING), indent=2))
    return NEGATIVE


def show_erasure(
    found: ErasureSummary, *, dry_run: bool, as_json: bool, reapplied: bool = False, written: _Written = _NOTHING
) -> int:
    """Print what a run found, by place, and what it could not do; return the exit code."""
    left = list(found.open_points())
    removed = dict(+found.removed)
    if as_json:
        typer.echo(json.dumps(_record(found, left, dry_run=dry_run) | asdict(written), indent=2))
    else:
        would = "would be erased" if dry_run else "erased again" if reapplied else "erased"
        messages = "1 message" if found.matched == 1 else f"{found.matched:,} messages"
        if found.matched or not written.scrubbed:
            typer.echo(f"{messages} {would}" if found.matched or reapplied else "there is none of that kind")
        for name, count in removed.items():
            typer.echo(f"  {count:>7,}  {PLACES.get(name, name)}")
        if written.scrubbed:
            typer.echo("database and Redis were written anew: no byte of it is left in their files")
        if written.report:
            typer.echo(f"what stays elsewhere, and until when: {written.report}")
        for sentence in left:
            say(sentence)
    if left:
        return NEGATIVE
    return OK if found.matched or reapplied else NEGATIVE


def _record(found: ErasureSummary, left: list[str], *, dry_run: bool) -> dict[str, Any]:
    counts = {"matched": found.matched, "held": found.held, "accounts": dict(found.by_account)}
    return {"dry_run": dry_run, **counts, "removed": dict(+found.removed), "open": left}
