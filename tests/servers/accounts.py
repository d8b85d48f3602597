"""Accounts as the settings would make them, for tests that need no settings."""

from __future__ import annotations

import json
from pathlib import Path

from email_ingestion.settings import Account
from gmail_sandbox import RunningSandbox
from tests.servers.processes import token_of

GMAIL = "https://mail.google.com/"


def account(**changes) -> Account:
    values = {
        "imap_host": "127.0.0.1",
        "imap_port": 143,
        "imap_tls": False,
        "imap_user": "alice@example.com",
        "imap_auth": "oauth2",
        "imap_password": None,
        "imap_mailbox": "auto",
        "imap_exclude_labels": (),
        "imap_start": "all",
        "google_client_id": None,
        "google_client_secret": None,
        "google_token_file": Path("none"),
        "google_token_uri": "https://token.example.com",
        "google_auth_uri": "https://consent.example.com",
        "google_service_account_file": None,
        "oauth2_grant": "refresh_token",
        "oauth2_scope": GMAIL,
        "oauth2_consent_days": None,
        "token_encryption_key": None,
    }
    return Account(**(values | changes))


def consented(sandbox: RunningSandbox, folder: Path, **changes) -> Account:
    """An account of the sandbox with a token file whose access token has expired."""
    path = folder / "token.json"
    path.write_text(json.dumps(token_of(sandbox)))
    return of_sandbox(sandbox, google_token_file=path, **changes)


def of_sandbox(sandbox: RunningSandbox, **changes) -> Account:
    values = {
        "imap_port": sandbox.imap_port,
        "imap_user": sandbox.user,
        "google_client_id": "sandbox-client",
        "google_client_secret": "sandbox-secret",
        "google_token_uri": sandbox.token_uri,
        "google_auth_uri": sandbox.auth_uri,
    }
    return account(**(values | changes))
