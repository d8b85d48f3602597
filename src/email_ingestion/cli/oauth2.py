"""`python -m src.auth.oauth2_gmail`: the state of the token, and a forced refresh. Never prints a token."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from email_ingestion.errors import AuthenticationFailed, ConfigurationError
from email_ingestion.mailbox import Token, TokenSource
from email_ingestion.settings import Account, Settings, load_settings

CODES = {"valid": 0, "expired": 2, "reauthorize": 3, "missing": 4}


def oauth2(
    info: Annotated[bool, typer.Option("--info", help="Show the token's state.")] = False,
    refresh: Annotated[bool, typer.Option("--refresh", help="Get a new access token now.")] = False,
    account: Annotated[str, typer.Option(help="The account's configured name, where there are several.")] = "",
) -> int:
    """Show or refresh the OAuth2 token.

    Exit code 0 valid, 2 expired but refreshable, 3 must be authorized again, 4 no or unreadable token.

    Examples:
      python -m src.auth.oauth2_gmail --info
      python -m src.auth.oauth2_gmail --refresh
    """
    if info == refresh:
        raise typer.BadParameter("give one of --info and --refresh")
    chosen = pick(load_settings(), account)
    source = TokenSource(chosen)
    return _refresh(source) if refresh else _info(chosen, source)


def pick(settings: Settings, name: str) -> Account:
    """The account called `name`, or the only one. Raises ConfigurationError."""
    accounts = settings.all_accounts
    if not name and len(accounts) == 1:
        return accounts[0]
    for account in accounts:
        if account.name == name:
            return account
    raise ConfigurationError(f"name one of the accounts with --account: {', '.join(each.name for each in accounts)}")


def _info(account: Account, source: TokenSource) -> int:
    token = source.describe()
    typer.echo(f"account:  {account.name}")
    typer.echo(f"file:     {account.google_token_file}")
    typer.echo(f"state:    {token.state}")
    if token.expires_at:
        typer.echo(f"expires:  {token.expires_at.isoformat(timespec='seconds')} ({_distance(token.expires_at)})")
    if token.scopes:
        typer.echo(f"scopes:   {' '.join(token.scopes)}")
    if token.problem:
        typer.echo(f"problem:  {token.problem}")
    elif token.state == "expired":
        typer.echo("next:     nothing to do: the producer refreshes it, or --refresh does now")
    return CODES[token.state]


def _refresh(source: TokenSource) -> int:
    before: Token = source.describe()
    if before.state == "missing":
        typer.echo(before.problem, err=True)
        return CODES["missing"]
    try:
        expires = source.refresh()
    except AuthenticationFailed as error:
        typer.echo(f"OAuth2AuthenticationError: {error}", err=True)
        return CODES["reauthorize"]
    typer.echo(f"refreshed: expires {expires.isoformat(timespec='seconds')} ({_distance(expires)})")
    return 0


def _distance(then: datetime) -> str:
    minutes = round((then - datetime.now(UTC)).total_seconds() / 60)
    return f"in {minutes} min" if minutes >= 0 else f"{-minutes} min ago"


if __name__ == "__main__":
    from email_ingestion.cli.exits import run

    run(oauth2)
