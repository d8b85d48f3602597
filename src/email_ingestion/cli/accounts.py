"""The accounts a command is about."""

from __future__ import annotations

from email_ingestion.errors import ConfigurationError
from email_ingestion.settings import Account, Settings


def pick(settings: Settings, name: str) -> Account:
    """The account called `name`, or the only one. Raises ConfigurationError."""
    accounts = settings.all_accounts
    if not name and len(accounts) == 1:
        return accounts[0]
    for account in accounts:
        if account.name == name:
            return account
    raise ConfigurationError(f"name one of the accounts with --account: {', '.join(each.name for each in accounts)}")


def chosen(settings: Settings, name: str) -> tuple[Account, ...]:
    """The account called `name`, or all of them when none is named. Raises ConfigurationError."""
    return (pick(settings, name),) if name else settings.all_accounts
