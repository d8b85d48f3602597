"""A ledger in another database: everything of it, whatever the direction, and again until nothing differs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from sqlalchemy import text
from typer.testing import CliRunner

from email_ingestion.cli.storage import copy
from email_ingestion.errors import OperationFailed
from email_ingestion.identity import tombstone
from email_ingestion.ledger.accounts import AccountRow
from email_ingestion.ledger.database_copy import COPIED, DatabaseCopy
from email_ingestion.ledger.model import Location, Marks
from email_ingestion.ledger.store import Ledger, open_ledger
from tests.contract.ledgers import letters, mail, stored


@pytest.fixture(params=["to PostgreSQL", "to SQLite"])
def urls(request: pytest.FixtureRequest, sqlite_url: str, postgres_url: str) -> tuple[str, str]:
    return (sqlite_url, postgres_url) if request.param == "to PostgreSQL" else (postgres_url, sqlite_url)


@contextmanager
def both(urls: tuple[str, str]) -> Iterator[tuple[Ledger, Ledger]]:
    with closing(open_ledger(urls[0])) as source, closing(open_ledger(urls[1])) as target:
        yield source, target


def fill(ledger: Ledger) -> None:
    text = "Grüße \U0001f600"
    mails = [mail(n, gm_msgid=2**63 + n, attachments=(b"x" * n,), text=text) for n in range(1, 301)]
    ledger.record([replace(stored(each), owed_to=("a", "b")) for each in mails])
    claim = ledger.outbox.claim("a", "one", 100, 60)
    ledger.outbox.mark_delivered(claim, [each.envelope.email_id for each in claim.deliveries])
    ledger.record_locations("default", {Location("Work", 7, n): f"default:gm:{2**63 + n}" for n in range(1, 50)})
    ledger.record_purged(["default:gm:9"])
    ledger.accounts.add(AccountRow("depot", "active", '{"imap_user": "depot@example.com"}', "secret"), "me")
    execute(ledger, "UPDATE emails SET flags = NULL, tags = NULL, list_id = NULL WHERE uid % 7 = 0")


def execute(ledger: Ledger, statement: str) -> None:
    with ledger._database.begin() as connection:
        connection.execute(text(statement))


def counts(ledger: Ledger) -> dict[str, Any]:
    ledger.changes.number()
    with ledger._database.connect() as connection:
        found = {name: connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one() for name in COPIED}
        for column in ("flags", "tags", "list_id"):
            query = text(f"SELECT count(*) FROM emails WHERE {column} IS NULL")
            found[column] = connection.execute(query).scalar_one()
    return found


def transfer(urls: tuple[str, str]) -> dict[str, int]:
    with closing(DatabaseCopy(*urls)) as made:
        made.refuse_other_mail()
        return dict(made.run(lambda rows: None).changes)


def test_everything_goes_over_and_a_second_pass_finds_nothing(urls: tuple[str, str]):
    with both(urls) as (source, target):
        fill(source)
        expected = counts(source)
        assert transfer(urls) == {"inserted": sum(expected[name] for name in COPIED)}
        assert counts(target) == expected
        assert transfer(urls) == {}
        assert len(target.mail_search.hits("grüße", 1000)) == 300
        assert target.outbox.backlog("a").waiting == 200
        found = target.stored_facts(f"default:gm:{2**63 + 3}")
        assert found == source.stored_facts(f"default:gm:{2**63 + 3}")
        assert found is not None
        assert target.content(found.raw_ref) == source.content(found.raw_ref)


def test_killed_in_the_middle_it_goes_on_and_what_changed_meanwhile_comes_over(urls: tuple[str, str]):
    with both(urls) as (source, target):
        fill(source)
        done = 0

        def kill(rows: int) -> None:
            nonlocal done
            done += rows
            if done > 500:
                raise KeyboardInterrupt

        with closing(DatabaseCopy(*urls)) as made, pytest.raises(KeyboardInterrupt):
            made.run(kill)
        assert counts(target) != counts(source)
        source.record(letters(1000))
        source.resends.add("a", [], ["default:gm:1000"])
        source.server_state.update_marks("INBOX", {f"default:gm:{2**63 + 1}": Marks(("Later",))})
        transfer(urls)
        source.resends.cancel("a")
        execute(source, "UPDATE emails SET tags = '[\"new\"]' WHERE uid = 7")
        execute(source, "UPDATE emails SET tags = NULL WHERE uid = 8")
        assert transfer(urls) == {"changed": 2, "removed": 1}
        assert counts(target) == counts(source)
        assert transfer(urls) == {}


def test_mail_that_arrives_during_a_pass_comes_whole_with_the_next(urls: tuple[str, str]):
    with both(urls) as (source, target):
        fill(source)
        calls = 0

        def arrive(rows: int) -> None:
            nonlocal calls
            calls += 1
            if calls == 20:  # contents and some of the messages are over
                source.record([replace(stored(mail(1, gm_msgid=1, attachments=(b"late",))), owed_to=("a",))])

        with closing(DatabaseCopy(*urls)) as made:
            made.run(arrive)
            made.run(lambda rows: None)
            assert made.run(lambda rows: None).same
        assert counts(target) == counts(source)


def test_what_the_other_database_cannot_keep_is_named_and_all_else_goes_over(
    sqlite_url: str, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", sqlite_url)
    app = typer.Typer()
    app.command()(copy)
    with both((sqlite_url, postgres_url)) as (source, target):
        source.record([stored(mail(n, attachments=(b"x",))) for n in range(1, 51)])
        execute(source, "UPDATE emails SET text = 'a' || char(0) || 'b' WHERE uid = 7")
        execute(source, "UPDATE emails SET labels = '[\"a\\u0000b\"]' WHERE uid = 8")
        execute(source, "UPDATE attachments SET filename = 'a' || char(0) WHERE email_id = 'default:gm:9'")
        ran = CliRunner().invoke(app, ["--to", postgres_url], standalone_mode=False)
        assert ran.return_value == 1
        for row in ("emails default:gm:7: ", "emails default:gm:8: ", "attachments default:gm:9 1: "):
            assert f"\n  {row}" in ran.stdout
        assert "does not take 3 rows" in ran.stdout
        assert target.count() == 48
        execute(source, "UPDATE emails SET text = 'ab', labels = '[]' WHERE uid IN (7, 8)")
        execute(source, "UPDATE attachments SET filename = 'a'")
        CliRunner().invoke(app, ["--to", postgres_url], standalone_mode=False)
        assert transfer((sqlite_url, postgres_url)) == {}
        assert counts(target) == counts(source)


def test_erased_mail_goes_there_too_and_other_mail_is_refused(urls: tuple[str, str]):
    with both(urls) as (source, target):
        source.record(letters(1, 2))
        transfer(urls)
        execute(source, "DELETE FROM emails WHERE uid = 1")
        mark = tombstone("default:gm:1")
        execute(source, f"INSERT INTO erased (tombstone, erased_at) SELECT '{mark}', processed_at FROM emails LIMIT 1")
        assert transfer(urls)["removed"] >= 1
        assert target.count() == 1
        target.record(letters(77))
        with pytest.raises(OperationFailed, match="default:gm:77"):
            transfer(urls)
        assert target.count() == 2


def test_the_database_in_use_is_no_place_to_copy_to(sqlite_url: str):
    with pytest.raises(OperationFailed, match="in use"):
        DatabaseCopy(sqlite_url, sqlite_url)


def test_the_command_copies_and_says_whether_both_are_the_same(
    sqlite_url: str, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", sqlite_url)
    with closing(open_ledger(sqlite_url)) as source:
        source.record(letters(1, 2, 3))
    app = typer.Typer()
    app.command()(copy)
    first = CliRunner().invoke(app, ["--to", postgres_url], standalone_mode=False)
    assert (first.return_value, first.stdout) == (
        0,
        "10 rows compared one by one: 10 inserted\nBoth databases are the same.\n",
    )
    again = CliRunner().invoke(app, ["--to", postgres_url, "--json"], standalone_mode=False)
    assert json.loads(again.stdout)["changes"] == {}
    assert postgres_url not in (tmp_path / "logs" / "audit.log").read_text()
