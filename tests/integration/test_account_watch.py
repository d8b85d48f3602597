"""What a producer makes of the accounts in the database as they change, without the watchers it would start."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from email_ingestion.app.account_list import AccountList, accounts_in_files
from email_ingestion.app.account_watch import AccountWatch
from email_ingestion.errors import SinkUnavailable
from email_ingestion.events import AccountUpdated, Event
from email_ingestion.ledger.accounts import AccountRow
from email_ingestion.ledger.store import Ledger, open_ledger
from email_ingestion.settings import Settings


class Taken:
    """What the process was told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.shown: dict[str, str] = {}
        self.read: list[str] = []

    def show(self, name: str, reason: str | None) -> None:
        self.shown = {key: value for key, value in {**self.shown, name: reason}.items() if value}

    def apply(self, found: AccountList) -> None:
        self.read = [account.name for account in found.accounts]

    def observe(self, event: Event) -> None:
        assert isinstance(event, AccountUpdated)
        self.events.append((event.account, event.change))


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    monkeypatch.chdir(tmp_path)
    with closing(open_ledger(f"sqlite:///{tmp_path}/ledger.db")) as made:
        yield made


@contextmanager
def watching(settings: Settings, ledger: Ledger | None) -> Iterator[tuple[AccountWatch, Taken]]:
    def get() -> Ledger:
        if ledger is None:
            raise SinkUnavailable("the database is away")
        return ledger

    taken = Taken()
    known = AccountList(accounts_in_files(settings))
    yield AccountWatch(settings, get, known, apply=taken.apply, show=taken.show, observe=taken.observe), taken


def row(name: str, **table: object) -> AccountRow:
    return AccountRow(name, "active", json.dumps({"imap_user": f"{name}@example.com", **table}))


def test_every_change_is_announced_once_and_a_wrong_row_goes_on_as_it_was(ledger: Ledger):
    stored = ledger.accounts
    with watching(Settings(imap_user="alice@example.com"), ledger) as (watch, taken):
        watch._look()
        assert (taken.read, taken.events) == (["default"], [])
        stored.add(row("a"), "me")
        stored.add(row("b"), "me")
        watch._look()
        watch._look()
        assert taken.read == ["default", "a", "b"]
        stored.set_state("a", "paused", "me")
        stored.replace(row("b", imap_port=143), "me")
        watch._look()
        assert taken.read == ["default", "b"]
        stored.set_state("a", "active", "me")
        stored.replace(row("b", imap_port="none"), "me")
        watch._look()
        assert sorted(taken.read) == ["a", "b", "default"]
        assert "IMAP_PORT" in taken.shown["account b"]
        assert "read as it was before" in taken.shown["account b"]
        stored.remove("b", "me")
        stored.add(row("default"), "me")
        watch._look()
        assert taken.read == ["default", "a"]
        assert taken.shown == {}
    assert taken.events == [
        *(("a", "added"), ("b", "added"), ("b", "changed"), ("a", "paused"), ("a", "resumed")),
        *(("default", "hidden"), ("b", "removed")),
    ]


def test_a_row_that_is_wrong_from_the_beginning_is_named_and_not_read(ledger: Ledger):
    ledger.accounts.add(row("a", imap_port=-1), "me")
    ledger.accounts.add(row("b"), "me")
    with watching(Settings(), ledger) as (watch, taken):
        watch._look()
    assert taken.read == ["b"]
    assert "as it was" not in taken.shown["account a"]


def test_a_database_that_is_away_is_told_at_once_where_no_account_is_known():
    with watching(Settings(), None) as (watch, taken):
        watch._look()
    assert "cannot be asked" in taken.shown["accounts"]


def test_a_database_that_is_away_for_a_moment_is_not_told_where_it_may_hold_none(ledger: Ledger):
    with watching(Settings(imap_user="alice@example.com"), None) as (watch, taken):
        watch._look()
        assert taken.shown == {}
        watch._started -= 60.0
        watch._look()
        assert "cannot be asked" in taken.shown["accounts"]
