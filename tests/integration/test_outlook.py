"""A server like Outlook: XOAUTH2 with another scope and token endpoint, no X-GM-EXT-1. It is a real Dovecot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from email_ingestion.errors import OAuth2AuthenticationError
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.oauth2 import TokenSource
from email_ingestion.oauth2.consent import authorize
from email_ingestion.settings import Account
from gmail_sandbox import Credentials, RunningSandbox, SandboxSettings, running_sandbox
from tests.sandbox.test_sandbox_oauth import location_of
from tests.servers.accounts import of_sandbox
from tests.servers.dovecot import PASSWORD, USER, DovecotServer, running_dovecot

SCOPE = "https://outlook.office.com/IMAP.AccessAsUser.All"


@pytest.fixture(scope="module")
def outlook() -> Iterator[tuple[RunningSandbox, DovecotServer]]:
    """A token endpoint for public and confidential clients, and a mail server that asks it."""
    with (
        running_sandbox(SandboxSettings(credentials=Credentials(user=USER, client_secret=""))) as provider,
        running_dovecot(provider.oauth_port, SCOPE) as server,
    ):
        server.deliver([b"Subject: hello\r\n\r\nworld\r\n"])
        yield provider, server


def _account(outlook: tuple[RunningSandbox, DovecotServer], **changes) -> Account:
    provider, server = outlook
    return of_sandbox(provider, imap_port=server.imap_port, google_client_secret=None, oauth2_scope=SCOPE, **changes)


def _read(account: Account, token: str | None) -> list[bytes]:
    with closing(ImapMailbox(account, 10)) as mailbox:
        mailbox.login(token)
        assert not mailbox.is_gmail
        mailbox.examine(mailbox.find_mailbox("auto"))
        return list(mailbox.fetch_bodies(mailbox.list_uids_from(1)).values())


def test_a_public_clients_consent_opens_the_mailbox_and_is_refreshed(
    outlook: tuple[RunningSandbox, DovecotServer], tmp_path: Path
):
    path = tmp_path / "token.json"
    account = _account(outlook, google_token_file=path).model_copy(update={"oauth2_scope": f"{SCOPE} offline_access"})
    said: list[str] = []
    authorize(account, said.append, lambda _: location_of(next(line for line in said if line.startswith("http"))))
    assert json.loads(path.read_text())["client_secret"] is None
    source = TokenSource(account)
    first = source.get_token().token
    assert b"hello" in _read(account, first)[0]
    source.refresh()
    assert source.get_token().token != first
    assert b"hello" in _read(account, source.get_token().token)[0]


def test_a_token_for_gmail_does_not_open_it(outlook: tuple[RunningSandbox, DovecotServer]):
    provider, _ = outlook
    with pytest.raises(OAuth2AuthenticationError):
        _read(_account(outlook), provider.access_token())


def test_an_application_opens_it_with_its_own_credentials(outlook: tuple[RunningSandbox, DovecotServer]):
    with running_sandbox(SandboxSettings(credentials=Credentials(user=USER))) as provider:
        account = of_sandbox(provider, oauth2_grant="client_credentials", oauth2_scope=SCOPE)
        with running_dovecot(provider.oauth_port, SCOPE) as server:
            server.deliver([b"Subject: hello\r\n\r\nworld\r\n"])
            account = account.model_copy(update={"imap_port": server.imap_port})
            assert b"hello" in _read(account, TokenSource(account).get_token().token)[0]


def test_a_password_opens_it(outlook: tuple[RunningSandbox, DovecotServer]):
    assert b"hello" in _read(_account(outlook, imap_auth="password", imap_password=PASSWORD), None)[0]
