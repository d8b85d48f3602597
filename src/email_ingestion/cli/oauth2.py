"""`python -m src.auth.oauth2_gmail`: the state of the token, and a forced refresh. Never prints a token."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from cryptography.fernet import Fernet

from email_ingestion.cli.common import pick_account
from email_ingestion.cli.output import say
from email_ingestion.errors import AuthenticationFailed
from email_ingestion.oauth2 import TokenSource, TokenStatus
from email_ingestion.settings import Account, load_settings

CODES = {"valid": 0, "expired": 2, "reauthorize": 3, "client refused": 3, "missing": 4}
MANY_MINUTES = 48 * 60


def oauth2(
    info: Annotated[bool, typer.Option("--info", help="Show the token's state.")] = False,
    refresh: Annotated[bool, typer.Option("--refresh", help="Get a new access token now.")] = False,
    new_key: Annotated[bool, typer.Option("--new-key", help="Print a fresh key for TOKEN_ENCRYPTION_KEY.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --info: JSON.")] = False,
    account: Annotated[str, typer.Option(help="The account's configured name, where there are several.")] = "",
) -> int:
    """Show or refresh the OAuth2 token.

    Exit code 0 valid, 2 expired but refreshable, 3 must be authorized again, or the OAuth2 client is refused and its
    secret or ID must be set right, 4 no or unreadable token.

    Examples:
      python -m src.auth.oauth2_gmail --info
      python -m src.auth.oauth2_gmail --info --json
      python -m src.auth.oauth2_gmail --refresh
    """
    if info + refresh + new_key != 1:
        raise typer.BadParameter("give one of --info, --refresh and --new-key")
    if new_key:
        typer.echo(Fernet.generate_key().decode())
        return 0
    chosen = pick_account(load_settings(), account)
    source = TokenSource(chosen)
    if refresh:
        return _refresh(source)
    token = source.describe()
    if as_json:
        typer.echo(json.dumps(_as_dict(chosen, token), indent=2))
    else:
        _show(chosen, token)
    return CODES[token.state]


def _show(account: Account, token: TokenStatus) -> None:
    typer.echo(f"account:  {account.name}")
    typer.echo(f"source:   {_origin(account)}")
    typer.echo(f"state:    {token.state}")
    if token.expires_at:
        typer.echo(f"expires:  {token.expires_at.isoformat(timespec='seconds')} ({_distance(token.expires_at)})")
    if token.consent_ends_at:
        ends = token.consent_ends_at
        typer.echo(f"consent:  ends {ends.isoformat(timespec='seconds')} ({_distance(ends)})")
    if token.scopes:
        typer.echo(f"scopes:   {' '.join(token.scopes)}")
    if token.problem:
        typer.echo(f"problem:  {token.problem}")
    elif token.state == "expired":
        typer.echo("next:     nothing to do: the producer refreshes it, or --refresh does now")


def _as_dict(account: Account, token: TokenStatus) -> dict[str, Any]:
    return {
        "account": account.name,
        "source": _origin(account),
        "state": token.state,
        "expires_at": token.expires_at.isoformat() if token.expires_at else None,
        "consent_ends_at": token.consent_ends_at.isoformat() if token.consent_ends_at else None,
        "scopes": list(token.scopes),
        "problem": token.problem,
    }


def _origin(account: Account) -> str:
    if account.google_service_account_file:
        return f"service account {account.google_service_account_file}"
    return "client credentials" if account.oauth2_grant == "client_credentials" else str(account.google_token_file)


def _refresh(source: TokenSource) -> int:
    before: TokenStatus = source.describe()
    if before.state == "missing":
        say(before.problem or "there is no token")
        return CODES["missing"]
    try:
        expires = source.refresh()
    except AuthenticationFailed as error:
        say(f"OAuth2AuthenticationError: {error}")
        return CODES["reauthorize"]
    typer.echo(f"refreshed: expires {expires.isoformat(timespec='seconds')} ({_distance(expires)})")
    return 0


def _distance(then: datetime) -> str:
    minutes = round((then - datetime.now(UTC)).total_seconds() / 60)
    if abs(minutes) > MANY_MINUTES:
        return f"{'in ' * (minutes > 0)}{abs(minutes) / 1440:.1f} days{' ago' * (minutes < 0)}"
    return f"in {minutes} min" if minutes >= 0 else f"{-minutes} min ago"


if __name__ == "__main__":
    from email_ingestion.cli.exit_codes import run

    run(oauth2)
