"""Accounts of the database: kept without plain secrets, and checked as those of the settings are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import text
from typer.testing import CliRunner

from email_ingestion.app.account_list import adopt_consent, encrypted_consent, encrypted_secrets, merge_accounts
from email_ingestion.app.nightly_retention import retention_selector
from email_ingestion.cli.accounts import accounts
from email_ingestion.cli.diagnostics import config
from email_ingestion.errors import ConfigurationError, SinkUnavailable
from email_ingestion.ledger.accounts import AccountRow, account_rows
from email_ingestion.ledger.copy import copy_ledger, merge_copy
from email_ingestion.ledger.store import Ledger, open_ledger
from email_ingestion.oauth2.token_file import Consent, TokenFile
from email_ingestion.settings import Settings, load_settings

PASSWORD = "correct-horse"
DEPOT = ("--user", "depot@example.com", "--host", "localhost", "--auth", "password")


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_url: str) -> Settings:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("TOKEN_ENCRYPTION_KEY", Fernet.generate_key().decode())
    monkeypatch.setenv("IMAP_TLS", "false")
    monkeypatch.setenv("IMAP_HOST", "localhost")
    monkeypatch.setenv("DEPOT_SECRET", PASSWORD)
    return load_settings()


@pytest.fixture
def ledger(database_url: str) -> Iterator[Ledger]:
    with closing(open_ledger(database_url)) as opened:
        yield opened


def row(settings: Settings, name: str = "depot", **changes: Any) -> AccountRow:
    table = {"imap_user": f"{name}@example.com", "imap_auth": "password", **changes}
    return AccountRow(name, "active", json.dumps(table), encrypted_secrets(settings, {"imap_password": PASSWORD}))


def execute(ledger: Ledger, statement: str) -> None:
    with ledger._database.begin() as connection:
        connection.execute(text(statement))


def command(*words: str, code: int = 0, given: str = "") -> str:
    done = CliRunner().invoke(accounts, list(words), input=given, standalone_mode=False)
    error = done.exception
    found = {ConfigurationError: 78}.get(type(error), 64) if error else (done.return_value or 0)
    shown = f"{done.output} {error or ''}"
    assert found == code, shown
    assert PASSWORD not in shown
    return shown


def test_what_is_kept_is_read_back_and_shows_no_secret(settings: Settings, ledger: Ledger, database_url: str):
    kept = row(settings)
    assert ledger.accounts.add(kept, "me")
    assert not ledger.accounts.add(kept, "me")
    assert ledger.accounts.rows() == account_rows(database_url) == (kept,)
    assert PASSWORD not in str(kept)
    found = merge_accounts(settings, ledger.accounts.rows())
    assert [(each.name, each.imap_password) for each in found.accounts] == [("depot", PASSWORD)]
    assert ledger.accounts.set_state("depot", "paused", "me")
    found = merge_accounts(settings, ledger.accounts.rows())
    assert ([each.name for each in found.paused], found.accounts) == (["depot"], ())
    assert not ledger.accounts.set_state("other", "paused", "me")
    assert ledger.accounts.remove("depot", "me")
    assert not ledger.accounts.remove("depot", "me")
    assert ledger.accounts.rows() == ()
    assert ledger.accounts.add(kept, "me")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("settings = '[1]'", "no JSON object"),
        ("settings = ''", "no JSON object"),
        ('settings = \'{"imap_port": "many", "imap_user": "x"}\'', "IMAP_PORT (it is 'many')"),
        ("settings = '{\"imap_prot\": 1}'", "IMAP_PROT"),
        ('settings = \'{"imap_auth": "password"}\'', "set IMAP_USER"),
        ("settings = '{\"imap_user\": [1]}'", "IMAP_USER"),
        ('settings = \'{"imap_user": "x", "imap_password": "y"}\'', "imap_password has no place"),
        ("secrets = NULL", "IMAP_AUTH=password needs IMAP_PASSWORD"),
        ("secrets = 'garbage'", "no key of TOKEN_ENCRYPTION_KEY opens its secrets"),
        ("secrets = 'gärbage'", "no key of TOKEN_ENCRYPTION_KEY opens its secrets"),
        ("state = 'asleep'", "neither active nor paused"),
        ("name = 'De pot'", "NAME (it is 'De pot')"),
    ],
)
def test_a_spoilt_row_is_named_and_hides_no_other(settings: Settings, ledger: Ledger, change: str, why: str):
    ledger.accounts.add(row(settings), "me")
    ledger.accounts.add(row(settings, "works"), "me")
    with ledger._database.begin() as connection:
        connection.exec_driver_sql(f"UPDATE accounts SET {change} WHERE name = 'depot'")
    found = merge_accounts(settings, ledger.accounts.rows())
    assert [each.name for each in found.accounts] == ["works"]
    (problem,) = found.broken.values()
    assert why in problem
    assert PASSWORD not in problem


def test_values_that_are_no_text_hide_no_other_row(settings: Settings, ledger: Ledger, database_url: str):
    if not database_url.startswith("sqlite"):
        pytest.skip("PostgreSQL keeps the types of its columns")
    ledger.accounts.add(row(settings), "me")
    ledger.accounts.add(row(settings, "works"), "me")
    execute(ledger, "UPDATE accounts SET settings = x'ff00', changed_at = 'long ago', secrets = 7 WHERE name = 'depot'")
    found = merge_accounts(settings, ledger.accounts.rows())
    assert ([each.name for each in found.accounts], list(found.broken)) == (["works"], ["depot"])


def test_the_settings_win_over_a_row_of_the_same_name(monkeypatch: pytest.MonkeyPatch, settings: Settings):
    monkeypatch.setenv("IMAP_USER", "alice@example.com")
    found = merge_accounts(load_settings(), [row(settings, "default")])
    assert [each.imap_user for each in found.accounts] == ["alice@example.com"]
    assert found.hidden == ("default",)


def test_a_row_never_gets_the_password_of_the_settings(monkeypatch: pytest.MonkeyPatch, settings: Settings):
    monkeypatch.setenv("IMAP_PASSWORD", "of another mailbox")
    found = merge_accounts(load_settings(), [replace(row(settings), secrets=None)])
    assert "IMAP_AUTH=password needs IMAP_PASSWORD" in found.broken["depot"]


def test_secrets_need_a_key_and_never_stand_on_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    by_file = ("--password-file", str(tmp_path / "password"))
    key = load_settings().token_encryption_key or ""
    monkeypatch.delenv("TOKEN_ENCRYPTION_KEY")
    assert "set TOKEN_ENCRYPTION_KEY" in command("add", "depot", *DEPOT, *by_file, code=78)
    monkeypatch.setenv("TOKEN_ENCRYPTION_KEY", key)
    assert "at a terminal" in command("add", "depot", *DEPOT, code=64)
    assert "command line" in command("add", "depot", *DEPOT, "--set", "imap_password=x", code=64)
    assert "the names are" in command("add", "depot", *DEPOT, "--set", "nonsense=x", code=64)
    assert "is not set" in command("add", "depot", *DEPOT, "--password-env", "NOT_THERE", code=64)
    assert "cannot be read" in command("add", "depot", *DEPOT, "--password-file", "nowhere", code=64)
    assert "IMAP_PORT (it is 99999)" in command("add", "depot", *DEPOT, *by_file, "--port", "99999", code=78)
    assert "NAME (it is 'Depot!')" in command("add", "Depot!", *DEPOT, *by_file, code=78)
    far = (*DEPOT, "--host", "imap.example.com")
    assert "IMAP_TLS=false is for a server on this machine only" in command("add", "depot", *far, *by_file, code=78)
    assert json.loads(command("list", "--json", code=1).splitlines()[0]) == []
    assert "within 10 s" in command("add", "depot", *DEPOT, "--password-file", "-", given=PASSWORD)
    assert "already" in command("add", "depot", *DEPOT, *by_file, code=1)
    monkeypatch.setenv("IMAP_USER", "alice@example.com")
    assert "stands in the environment" in command("add", "default", *DEPOT, *by_file, code=78)
    assert "stands in the environment" in command("pause", "default", code=78)


def test_an_account_is_changed_in_part_and_listed(ledger: Ledger, monkeypatch: pytest.MonkeyPatch):
    command("add", "depot", *DEPOT, "--password-env", "DEPOT_SECRET")
    command("change", "depot", "--port", "1143", "--set", "imap_exclude_labels=Sent, Drafts")
    command("pause", "depot")
    (found,) = merge_accounts(load_settings(), ledger.accounts.rows()).paused
    assert (found.imap_port, found.imap_exclude_labels, found.imap_password) == (1143, ("Sent", "Drafts"), PASSWORD)
    shown = {"account": "depot", "stands in": "database", "state": "paused", "user": "depot@example.com",
             "server": "localhost:1143", "auth": "password", "problem": None}  # fmt: skip
    assert json.loads(command("list", "--json", code=1)) == [shown]
    command("resume", "depot")
    assert json.loads(command("list", "--json")) == [{**shown, "state": "active"}]
    monkeypatch.setenv("TOKEN_ENCRYPTION_KEY", Fernet.generate_key().decode())
    assert "no key of TOKEN_ENCRYPTION_KEY" in command("list", "--json", code=1)
    command("change", "depot", "--password-env", "DEPOT_SECRET")
    assert json.loads(command("list", "--json"))[0]["state"] == "active"
    assert "say what to change" in command("change", "depot", code=64)
    assert "no account" in command("change", "other", "--port", "1", code=1)
    command("remove", "depot")
    assert "no account" in command("remove", "depot", code=1)


def test_the_shown_settings_name_them(settings: Settings, ledger: Ledger):
    shown = CliRunner().invoke(config, ["show", "--json"], standalone_mode=False)
    assert "the database" not in {each["origin"] for each in json.loads(shown.output)}
    ledger.accounts.add(row(settings), "me")
    shown = CliRunner().invoke(config, ["show", "--json", "--set"], standalone_mode=False)
    assert {"name": "ACCOUNTS", "value": "depot", "origin": "the database"} in json.loads(shown.output)


def test_a_consent_reaches_the_token_file_of_each_machine_once(settings: Settings, ledger: Ledger):
    kept = row(settings, "gmail", imap_auth="oauth2")
    ledger.accounts.add(replace(kept, secrets=None), "me")
    (account,) = merge_accounts(settings, ledger.accounts.rows()).accounts
    consent = Consent("client", "client secret", "refresh secret", ("mail",), consented_at=1000.0)
    assert ledger.accounts.store_consent("gmail", encrypted_consent(account, consent), "me")
    (stored,) = ledger.accounts.rows()
    assert "refresh secret" not in str(stored)
    assert adopt_consent(account, stored)
    assert TokenFile(account).read() == consent
    assert "refresh secret" not in account.google_token_file.read_text()
    newer = replace(consent, refresh_token="rotated", consented_at=1000.0)
    TokenFile(account).write(newer)
    assert not adopt_consent(account, stored)
    assert TokenFile(account).read() == newer
    with pytest.raises(ConfigurationError, match="no key of TOKEN_ENCRYPTION_KEY"):
        adopt_consent(account, replace(stored, consent="nonsense"))


def test_its_days_of_retention_count(settings: Settings, ledger: Ledger):
    assert retention_selector(settings, ledger) is None
    ledger.accounts.add(row(settings, retention_days=30), "me")
    selector = retention_selector(settings, ledger)
    assert selector is not None
    assert "depot" in str(selector.describe())


def test_a_restore_brings_accounts_back_but_none_that_was_removed(
    settings: Settings, ledger: Ledger, database_url: str, tmp_path: Path
):
    ledger.accounts.add(row(settings), "me")
    ledger.accounts.add(row(settings, "lost"), "me")
    copied = copy_ledger(database_url, tmp_path / "copy", lambda *_: None)
    assert copied is not None
    assert copied.rows["accounts"] == 2
    assert PASSWORD.encode() not in (tmp_path / "copy").read_bytes()
    ledger.accounts.remove("depot", "me")
    execute(ledger, "DELETE FROM accounts WHERE name = 'lost'")
    merge_copy(database_url, tmp_path / "copy", copied)
    assert [each.name for each in ledger.accounts.rows()] == ["lost"]


def test_a_database_without_the_table_has_no_accounts_and_is_not_made(
    tmp_path: Path, ledger: Ledger, database_url: str
):
    assert account_rows(f"sqlite:///{tmp_path}/none.db") == ()
    assert not (tmp_path / "none.db").exists()
    execute(ledger, "DROP TABLE accounts")
    assert account_rows(database_url) == ()
    if database_url.startswith("sqlite"):
        (tmp_path / "no.db").write_text("no database at all, for it is this text" * 40)
        with pytest.raises((SinkUnavailable, ConfigurationError)):
            account_rows(f"sqlite:///{tmp_path}/no.db")
