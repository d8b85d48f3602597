"""Accounts as the settings name them: refused where only an operator can help, and opened for one command."""

from __future__ import annotations

from email_ingestion.errors import ConfigurationError
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.mailbox.imap_errors import TokenRejected
from email_ingestion.oauth2 import TokenSource
from email_ingestion.settings import Account, Settings

MAILBOXES_MOST = 3  # of an account: Gmail allows 15 connections, which the owner's own programs need too


def check_accounts(settings: Settings) -> None:
    """Refuse to start where only an operator can help; later on the same only holds up the account."""
    for account in settings.all_accounts:
        _check(account)


def _check(account: Account) -> None:
    if not 1 <= len(account.by_mailbox) <= MAILBOXES_MOST:
        raise ConfigurationError(f"IMAP_MAILBOX names one to {MAILBOXES_MOST} mailboxes: each has its own connection")
    if not account.imap_user:
        raise ConfigurationError("set IMAP_USER in .env to the address of the mailbox; see config/.env.example")
    if account.imap_auth == "password":
        if not account.imap_password:
            raise ConfigurationError("IMAP_AUTH=password needs IMAP_PASSWORD or IMAP_PASSWORD_FILE")
    else:
        token = TokenSource(account).describe()
        if token.state == "missing":
            raise ConfigurationError(token.problem or "there is no token")


def log_in(account: Account, timeout: float) -> ImapMailbox:
    """A connection of its own for a command; raises AuthenticationFailed, IMAPConnectionError, TokenRefreshError."""
    tokens = TokenSource(account) if account.imap_auth == "oauth2" else None
    token = tokens.access().token if tokens else None
    connection = ImapMailbox(account, timeout)
    try:
        try:
            connection.login(token)
        except TokenRejected:
            if not tokens:
                raise
            connection.close()
            connection = ImapMailbox(account, timeout)
            connection.login(tokens.access(rejected=token).token)
    except BaseException:
        connection.close()
        raise
    return connection
