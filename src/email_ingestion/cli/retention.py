"""`retention`: erase what is older than it is kept, and hold what must not be erased."""

from __future__ import annotations

import secrets
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from email_ingestion.cli.common import audited, current_user, open_redis, refuse_unknown_account
from email_ingestion.cli.erase import check_address, show_erasure, show_nothing
from email_ingestion.cli.exit_codes import NEGATIVE, OK
from email_ingestion.cli.id_arguments import pick_delivered
from email_ingestion.cli.output import Json, printable, report, say, show
from email_ingestion.cli.progress_bars import progress
from email_ingestion.identity import EMAIL_ID
from email_ingestion.settings import load_settings

if TYPE_CHECKING:
    from email_ingestion.ledger.model import Hold
    from email_ingestion.ledger.store import Ledger

retention = typer.Typer(no_args_is_help=True, help="Say for how long mail is kept, and hold what must not be erased.")
hold = typer.Typer(no_args_is_help=True, help="Keep mail whatever its age and whoever wants it erased.")
retention.add_typer(hold, name="hold")


@retention.command()
def run(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be erased.")] = False,
    as_json: Json = False,
) -> int:
    """Erase now what is older than RETENTION_DAYS, or the `retention_days` of its account or route, say.

    The producer does so each night. Exit code 0 when all of it is erased or there is none, 1 when something stays.

    Examples:
      email-ingestion retention run --dry-run
      email-ingestion retention run --json
    """
    from email_ingestion.app.erasures import new_run, open_eraser, report_erasure  # noqa: PLC0415 - help comes without SQLAlchemy
    from email_ingestion.app.nightly_retention import retention_selector  # noqa: PLC0415
    from email_ingestion.ledger.store import open_existing_ledger  # noqa: PLC0415

    settings, link = open_redis("retention")
    with closing(open_existing_ledger(settings.database_url)) as ledger:
        selector = retention_selector(settings, ledger)
        if selector is None:
            say("neither RETENTION_DAYS nor a route says for how long mail is kept")
            return show_nothing(dry_run=dry_run, as_json=as_json)
        with open_eraser(settings, link, ledger, new_run()) as eraser, progress("looking", ledger.count()) as advance:
            if dry_run:
                for done in eraser.preview(selector):
                    advance(done)
            else:
                details = {"run": eraser.name, **selector.describe()}
                with audited(settings.log_dir, "retention run", details) as outcome:
                    for done in eraser.erase(selector):
                        advance(done)
                    outcome |= {"matched": eraser.summary.matched, "removed": dict(+eraser.summary.removed)}
                    outcome.update(report_erasure(settings, eraser, selector, scrubbed=False))
    code = show_erasure(eraser.summary, dry_run=dry_run, as_json=as_json)
    return code if eraser.summary.matched else OK


@hold.command()
def add(
    *,
    sender: Annotated[str, typer.Option(metavar="ADDRESS", help="Mail from this address, or @domain.")] = "",
    address: Annotated[str, typer.Option(metavar="ADDRESS", help="Mail from or to this address, or @domain.")] = "",
    email_id: Annotated[str, typer.Option("--id", metavar="ID", help="This message.")] = "",
    account: Annotated[str, typer.Option(help="Only this account; alone: all of its mail.")] = "",
    reason: Annotated[str, typer.Option(help="Why; it is shown to whoever wants to erase.")] = "",
    as_json: Json = False,
) -> int:
    """Hold mail: neither `erase` nor its age removes it, mail that comes later included. Prints the hold's number.

    Examples:
      email-ingestion retention hold add --address anna@example.org --reason "case 2026-14"
      email-ingestion retention hold add --account work
    """
    from email_ingestion.ledger.model import Hold  # noqa: PLC0415
    from email_ingestion.ledger.store import open_ledger  # noqa: PLC0415 - help comes without SQLAlchemy

    given = {name: value for name, value in (("sender", sender), ("address", address), ("id", email_id)) if value}
    if len(given) > 1 or not (given or account):
        raise typer.BadParameter("say what to hold: one of --sender, --address, --id, or --account")
    for option, value in (("--sender", sender), ("--address", address)):
        check_address(option, value)
    settings = load_settings()
    with closing(open_ledger(settings.database_url)) as ledger:
        if account:
            refuse_unknown_account(settings, account, lambda: ledger.count(account))
        kind, value = next(iter(given.items()), ("account", ""))
        if kind == "id":
            value = _identity(ledger, value)
            if not value:
                say(f"{printable(email_id)} is not in the database, and no whole identity")
                return NEGATIVE
        user, now = current_user(), datetime.now(UTC)
        made = Hold(f"hold-{secrets.token_hex(4)}", kind, value, account or None, reason, user, now)
        with audited(settings.log_dir, "retention hold add", {"hold": made.hold_id, "kind": kind, "account": account}):
            ledger.erasure.add_hold(made)
    report(_row(made), made.hold_id, as_json=as_json)
    return OK


@hold.command()
def release(
    hold_id: Annotated[str, typer.Argument(metavar="HOLD", help="Its number, as `list` shows it.")],
    as_json: Json = False,
) -> int:
    """Release a hold: its mail may be erased again, and is in the next night if it is too old. Exit code 1: no such.

    Examples:
      email-ingestion retention hold release hold-1f0c9a6b
    """
    from email_ingestion.ledger.store import open_existing_ledger  # noqa: PLC0415 - help comes without SQLAlchemy

    settings = load_settings()
    with (
        closing(open_existing_ledger(settings.database_url)) as ledger,
        audited(settings.log_dir, "retention hold release", {"hold": hold_id}) as outcome,
    ):
        released = ledger.erasure.release_hold(hold_id, current_user())
        outcome["released"] = released
    sentence = f"{hold_id} is released" if released else f"there is no hold {printable(hold_id)}"
    report({"hold": hold_id, "released": released}, sentence, as_json=as_json)
    return OK if released else NEGATIVE


@hold.command("list")
def list_holds(as_json: Json = False) -> int:
    """Show the holds, oldest first. Exit code 0 when there are some, 1 when there is none.

    Examples:
      email-ingestion retention hold list
    """
    from email_ingestion.ledger.store import open_existing_ledger  # noqa: PLC0415 - help comes without SQLAlchemy

    with closing(open_existing_ledger(load_settings().database_url)) as ledger:
        found = ledger.erasure.holds()
    show([_row(each) for each in found], as_json=as_json)
    if not found:
        say("nothing is held")
    return OK if found else NEGATIVE


def _identity(ledger: Ledger, text: str) -> str:
    found = pick_delivered(ledger, text)
    return found or (text if EMAIL_ID.fullmatch(text) else "")


def _row(made: Hold) -> dict[str, Any]:
    return {
        "hold": made.hold_id,
        "kind": made.kind,
        "value": made.value,
        "account": made.account,
        "reason": made.reason,
        "by": made.created_by,
        "since": made.created_at.isoformat(timespec="seconds"),
    }
