"""The pages of accounts: added, paused and removed, and authorized in the browser against the sandbox's endpoints."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from html import unescape
from pathlib import Path

import httpx
import pytest
from cryptography.fernet import Fernet

from email_ingestion.errors import OAuth2AuthenticationError
from email_ingestion.ledger.accounts import account_rows
from email_ingestion.ledger.store import open_ledger
from email_ingestion.oauth2.consent import CONSENT_SECONDS
from email_ingestion.ops.audit_log import read_audit
from email_ingestion.settings import Settings
from email_ingestion.web.consent_renewals import ConsentRenewals
from gmail_sandbox import RunningSandbox, SandboxSettings, running_sandbox
from tests.servers.accounts import of_sandbox
from tests.servers.web import Visitor, running_pages, web_settings

PASSWORD = "correct-horse"
DEPOT = {"name": "depot", "address": "depot@example.com", "auth": "password", "host": "127.0.0.1", "password": PASSWORD}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[RunningSandbox]:
    with running_sandbox(SandboxSettings()) as running:
        yield running


@pytest.fixture
def settings(tmp_path: Path, sandbox: RunningSandbox, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    made = web_settings(
        tmp_path,
        token_encryption_key=Fernet.generate_key().decode(),
        imap_host="127.0.0.1",
        imap_port=sandbox.imap_port,
        imap_tls=False,
        imap_user=sandbox.user,
        google_client_id="sandbox-client",
        google_client_secret="sandbox-secret",
        google_token_uri=sandbox.token_uri,
        google_auth_uri=sandbox.auth_uri,
    )
    open_ledger(made.database_url).close()
    return made


@pytest.fixture
def visitor(settings: Settings) -> Iterator[Visitor]:
    with running_pages(settings) as address, Visitor(address) as made:
        made.enter(settings)
        yield made


def add(visitor: Visitor, **changes: str) -> httpx.Response:
    return visitor.submit(visitor.get("/accounts"), "/accounts", **(DEPOT | changes))


def consent_url(page: httpx.Response, sandbox: RunningSandbox) -> str:
    return next(
        unescape(each) for each in re.findall(r'href="([^"]*)"', page.text) if each.startswith(sandbox.auth_uri)
    )


def redirect_of(page: httpx.Response, sandbox: RunningSandbox) -> str:
    return httpx.get(consent_url(page, sandbox)).headers["location"]


def begin(visitor: Visitor, name: str = "default") -> httpx.Response:
    return visitor.submit(visitor.get(f"/accounts/{name}"), f"/accounts/{name}/authorize")


def test_an_account_is_added_paused_and_removed(visitor: Visitor, settings: Settings):
    done = add(visitor)
    assert "depot is added" in done.text
    (row,) = account_rows(settings.database_url)
    assert row.name == "depot"
    assert PASSWORD not in f"{row}{done.text}{visitor.get('/accounts/depot').text}"
    assert "There is an account depot already" in add(visitor).text
    assert "is paused" in visitor.submit(visitor.get("/accounts/depot"), "/accounts/depot/pause").text
    assert account_rows(settings.database_url)[0].state == "paused"
    visitor.submit(visitor.get("/accounts/depot"), "/accounts/depot/resume")
    assert account_rows(settings.database_url)[0].state == "active"
    assert (
        "delivered mail and its cursor stay"
        in visitor.submit(visitor.get("/accounts/depot"), "/accounts/depot/remove").text
    )
    assert account_rows(settings.database_url) == ()
    actions = [(each["action"], each["result"]) for each in read_audit(settings.log_dir) if each.get("account")]
    assert [each for each in actions if each[1] == "done"] == [
        ("accounts add", "done"),
        ("accounts pause", "done"),
        ("accounts resume", "done"),
        ("accounts remove", "done"),
    ]
    assert PASSWORD not in "".join(path.read_text() for path in settings.log_dir.iterdir())


def test_what_is_wrong_is_said_and_kept_nowhere(visitor: Visitor, settings: Settings):
    assert "IMAP_PORT" in add(visitor, port="99999").text
    assert "NAME" in add(visitor, name="Depot!").text
    assert "IMAP_AUTH=password needs IMAP_PASSWORD" in add(visitor, password="").text
    assert "IMAP_TLS=false is for a server on this machine only" in add(visitor, host="imap.example.com").text
    assert account_rows(settings.database_url) == ()
    assert visitor.get("/accounts/nobody").status_code == 404
    other = add(visitor, name="mail", auth="oauth2", host="imap.attacker.example")
    assert "mail is added" in other.text
    assert "attacker" not in account_rows(settings.database_url)[0].settings


def test_a_reader_sees_accounts_and_gives_no_orders(settings: Settings):
    with running_pages(settings) as address, Visitor(address) as reader:
        reader.enter(settings, "reader")
        page = reader.get("/accounts")
        assert "default" in page.text
        assert "Add an account" not in page.text
        assert "Authorize again" not in reader.get("/accounts/default").text
        assert reader.post("/accounts/default/authorize").status_code == 403
        assert reader.get("/oauth2/callback?state=x&code=y").status_code == 403


def test_pages_answer_while_the_database_is_no_database(settings: Settings, tmp_path: Path):
    (tmp_path / "ledger.db").write_text("no database" * 1000)
    with running_pages(settings) as address, Visitor(address) as visitor:
        visitor.enter(settings)
        page = visitor.get("/accounts")
        assert "The accounts of the database are not known" in page.text
        assert "default" in page.text
        assert add(visitor).status_code == 400


def test_a_consent_is_pasted_and_works_once_in_its_session(
    visitor: Visitor, settings: Settings, sandbox: RunningSandbox
):
    page = begin(visitor)
    address = redirect_of(page, sandbox)
    assert address.startswith("http://127.0.0.1:1")
    with running_pages(settings) as elsewhere, Visitor(elsewhere) as stranger:
        stranger.enter(settings)
        refused = stranger.submit(begin(stranger), "/oauth2/pasted", address=address)
        assert "belongs to no authorization of this session" in refused.text
    assert not settings.google_token_file.exists()
    assert "default is authorized" in visitor.submit(page, "/oauth2/pasted", address=f"  {address}\n").text
    first = settings.google_token_file.read_text()
    again = visitor.submit(page, "/oauth2/pasted", address=address)
    assert again.status_code == 400
    assert "was used already" in again.text
    for nonsense in ("", "http://[", "https://example.com/?state=a&state=b", "http://127.0.0.1:1/?state=x&code=y"):
        assert visitor.submit(page, "/oauth2/pasted", address=nonsense).status_code in {400, 422}
    assert settings.google_token_file.read_text() == first


def test_a_consent_for_another_mailbox_replaces_nothing(settings: Settings, sandbox: RunningSandbox, tmp_path: Path):
    settings.google_token_file.write_text('{"client_id": "sandbox-client", "refresh_token": "of-bob"}')
    other = settings.model_copy(update={"imap_user": "bob@example.com"})
    with running_pages(other) as address, Visitor(address) as visitor:
        visitor.enter(other)
        page = begin(visitor)
        refused = visitor.submit(page, "/oauth2/pasted", address=redirect_of(page, sandbox))
        assert refused.status_code == 400
        assert "does not take this consent for bob@example.com" in refused.text
    assert "of-bob" in settings.google_token_file.read_text()
    away = settings.model_copy(update={"imap_port": 1})
    with running_pages(away) as address, Visitor(address) as visitor:
        visitor.enter(away)
        page = begin(visitor)
        refused = visitor.submit(page, "/oauth2/pasted", address=redirect_of(page, sandbox))
        assert "could not be proved" in refused.text
    assert "of-bob" in settings.google_token_file.read_text()
    failed = [each for each in read_audit(settings.log_dir) if each["action"] == "accounts authorize"]
    assert [each["result"] for each in failed] == ["started", "failed"] * 2
    assert "code=" not in json.dumps(failed)


def test_an_account_of_the_database_keeps_its_consent_there_too(
    visitor: Visitor, settings: Settings, sandbox: RunningSandbox, tmp_path: Path
):
    add(visitor, name="second", auth="oauth2", address=sandbox.user)
    page = begin(visitor, "second")
    done = visitor.submit(page, "/oauth2/pasted", address=redirect_of(page, sandbox))
    assert "second is authorized; its producer goes on" in done.text
    assert (tmp_path / "data" / "accounts" / "second.json").exists()
    with closing(open_ledger(settings.database_url)) as ledger:
        assert ledger.accounts.rows()[0].consent


def test_the_web_client_asks_for_a_lasting_consent_and_leads_back_to_us(settings: Settings, sandbox: RunningSandbox):
    web = {"google_web_client_id": "web-client", "google_web_client_secret": "s", "web_public_url": "https://a.example"}
    begun = ConsentRenewals(settings.model_copy(update=web)).begin(of_sandbox(sandbox), "session")
    asked = dict(httpx.URL(begun.url).params)
    assert begun.comes_back
    assert asked["client_id"] == "web-client"
    assert asked["redirect_uri"] == "https://a.example/oauth2/callback"
    assert (asked["access_type"], asked["prompt"], asked["code_challenge_method"]) == ("offline", "consent", "S256")
    assert asked["login_hint"] == sandbox.user
    assert len(asked["state"]) > 20


def test_an_authorization_ends_after_ten_minutes(settings: Settings, sandbox: RunningSandbox):
    now = [0.0]
    renewals = ConsentRenewals(settings, lambda: now[0])
    begun = renewals.begin(of_sandbox(sandbox), "session")
    address = httpx.get(begun.url).headers["location"]
    now[0] = CONSENT_SECONDS + 1.0
    with pytest.raises(OAuth2AuthenticationError, match="in the last 10 minutes"):
        renewals.finish(address, "session")
