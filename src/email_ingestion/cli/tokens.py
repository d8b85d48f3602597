"""`email-ingestion tokens …`: who may ask the read API, and for which mail."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from email_ingestion.cli.common import audited, current_user, parse_duration, refuse_unknown_account
from email_ingestion.cli.exit_codes import NEGATIVE, OK
from email_ingestion.cli.output import Json, printable, say, show
from email_ingestion.erasure.tombstones import TombstoneFile
from email_ingestion.errors import EmailIngestionError
from email_ingestion.identity import MIN_PART
from email_ingestion.settings import load_settings

if TYPE_CHECKING:
    from email_ingestion.ledger.api_tokens import ApiToken

tokens = typer.Typer(no_args_is_help=True, help="Make, list and revoke the tokens of the read API.")


@tokens.command()
def create(
    scope: Annotated[
        Literal["read", "operate"], typer.Option(help="read: mail and state; operate: orders too.", show_default=True)
    ] = "read",
    account: Annotated[str | None, typer.Option(help="Only the mail of this account, by its configured name.")] = None,
    ttl: Annotated[str | None, typer.Option(metavar="TTL", help="Ends after 12h, 30d; else when revoked.")] = None,
) -> int:
    """Make a token and print it, alone on the last line: it is shown this once, for only its hash is kept.

    Examples:
      email-ingestion tokens create --scope read
      email-ingestion tokens create --scope read --account default --ttl 30d
    """
    from email_ingestion.ledger.store import open_ledger  # noqa: PLC0415

    lasting = None if ttl is None else parse_duration(ttl, "--ttl")
    if lasting is not None and not lasting:
        raise typer.BadParameter("--ttl must be longer than nothing")
    settings = load_settings()
    details = {"scope": scope, "account": account, "ttl": ttl}
    with closing(open_ledger(settings.database_url)) as ledger:
        if account is not None:
            refuse_unknown_account(settings, account, lambda: ledger.count(account))
        with audited(settings.log_dir, "tokens create", details) as outcome:
            try:
                text, made = ledger.api_tokens.create(scope, current_user(), account, lasting)
            except OverflowError:
                raise typer.BadParameter(f"--ttl {ttl} is beyond all dates") from None
            outcome["token_id"] = made.token_id
    say(f"{made.token_id}: {scope}, {account or 'every account'}, {_until(made)}")
    typer.echo(text)
    return OK


@tokens.command("list")
def list_(as_json: Json = False) -> int:
    """Show the tokens that were made, revoked and expired ones too. Exit code 1 when there is none.

    Examples:
      email-ingestion tokens list
      email-ingestion tokens list --json
    """
    from email_ingestion.ledger.store import open_existing_ledger  # noqa: PLC0415 - help comes without SQLAlchemy

    with closing(open_existing_ledger(load_settings().database_url)) as ledger:
        found, now = ledger.api_tokens.all()
    rows = [
        {
            "id": each.token_id,
            "scope": each.scope,
            "account": each.account,
            "state": each.state(now),
            "created_by": each.created_by,
            "created_at": _text(each.created_at),
            "expires_at": _text(each.expires_at),
            "revoked_at": _text(each.revoked_at),
        }
        for each in found
    ]
    show(rows, as_json=as_json)
    if not rows:
        say("there is no token: email-ingestion tokens create makes one")
    return OK if rows else NEGATIVE


@tokens.command()
def revoke(
    token_id: Annotated[
        str, typer.Argument(metavar="ID", help="As `list` shows it, or a beginning of it.", show_default=False)
    ],
) -> int:
    """End a token now and for good, in restored backups too. Exit code 1 when there is none of that id.

    Examples:
      email-ingestion tokens revoke 5f2c81d0a3b4
    """
    from email_ingestion.ledger.store import open_existing_ledger  # noqa: PLC0415 - help comes without SQLAlchemy

    settings = load_settings()
    with closing(open_existing_ledger(settings.database_url)) as ledger:
        found = ledger.api_tokens.matching(token_id)
        if len(found) > 1:
            raise typer.BadParameter(f"{printable(token_id)} may mean {', '.join(found)}: give more of the one")
        if not found:
            say(f"there is no token {printable(token_id)} (give {MIN_PART} characters or more): see tokens list")
            return NEGATIVE
        with audited(settings.log_dir, "tokens revoke", {"token_id": found[0]}) as outcome:
            outcome["revoked"] = ledger.api_tokens.revoke(found[0], current_user())
        try:
            TombstoneFile(settings.erasure_dir).add_missing(ledger.api_tokens.tombstones(), "tokens revoke")
        except EmailIngestionError as error:
            say(f"a restored backup would bring it back, for its tombstone cannot be kept: {error}")
    say(f"{found[0]} {'is revoked' if outcome['revoked'] else 'was revoked before'}")
    return OK


def _until(token: ApiToken) -> str:
    return f"until {_text(token.expires_at)}" if token.expires_at else "until it is revoked"


def _text(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="seconds") if moment else None
