"""Looking after the database: a reading that finds damage, and room that comes back."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from email_ingestion.cli.storage import database
from email_ingestion.errors import OperationFailed, SinkUnavailable
from email_ingestion.ledger.maintenance import compact, find_damage
from email_ingestion.ledger.store import Ledger, open_ledger
from tests.contract.ledgers import letters, mail, stored

app = typer.Typer()
app.add_typer(database, name="database")


def test_a_sound_database_has_no_faults(ledger: Ledger, database_url: str) -> None:
    ledger.record(letters(1, 2, 3))
    assert find_damage(database_url) == []


def test_compacting_keeps_every_row_and_takes_no_more_room(own_database_url: str) -> None:
    long = [stored(mail(number, text="word " * 20_000)) for number in range(1, 40)]
    with closing(open_ledger(own_database_url)) as ledger:
        ledger.record(long)
        before, after = compact(own_database_url)
        assert 0 < after <= before * 1.1
        assert ledger.count() == len(long)
        ledger.record(letters(100))
        assert ledger.count() == len(long) + 1


def test_room_comes_back_from_what_was_deleted(sqlite_url: str, tmp_path: Path) -> None:
    with closing(open_ledger(sqlite_url)) as ledger:
        ledger.record(letters(1, 2))
    path = sqlite_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("CREATE TABLE much (bytes BLOB)")
        other.executemany("INSERT INTO much VALUES (randomblob(100000))", [()] * 50)
        other.execute("DROP TABLE much")
    before, after = compact(sqlite_url)
    assert after < before - 4_000_000


def test_a_reference_to_nothing_is_found(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(open_ledger(sqlite_url)) as ledger:
        ledger.record([stored(mail(1, attachments=(b"attached",)))])
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as other, other:
        other.execute("DELETE FROM emails")  # without foreign_keys=ON
    assert find_damage(sqlite_url) == ["attachments refers to no emails"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", sqlite_url)
    shown = CliRunner().invoke(app, ["database", "check", "--json"], standalone_mode=False)
    assert (shown.return_value, json.loads(shown.output)[0]["state"]) == (1, "damaged")


def test_a_damaged_page_is_found(sqlite_url: str) -> None:
    with closing(open_ledger(sqlite_url)) as ledger:
        ledger.record(letters(*range(1, 200)))
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    with closing(sqlite3.connect(path)) as other:
        (page,) = other.execute("SELECT rootpage FROM sqlite_master WHERE name = 'emails'").fetchall()[0]
        (size,) = other.execute("PRAGMA page_size").fetchall()[0]
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    with path.open("r+b") as file:
        file.seek((page - 1) * size + 8)
        file.write(b"\xff" * 500)
    try:
        found = find_damage(sqlite_url)
    except SinkUnavailable as error:  # so bad that the reading comes to no end
        found = [str(error)]
    assert found


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "none.db"
    with pytest.raises(OperationFailed, match="not there yet"):
        find_damage(f"sqlite:///{path}")
    assert not path.exists()


def test_the_commands_say_what_they_found(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", sqlite_url)
    with closing(open_ledger(sqlite_url)) as ledger:
        ledger.record(letters(1))
    assert CliRunner().invoke(app, ["database", "check"]).output.strip() == "state\tfault\nok"
    done = json.loads(CliRunner().invoke(app, ["database", "compact", "--json"]).output)
    assert 0 < done[0]["bytes_after"] <= done[0]["bytes_before"] * 1.5
    audit = (tmp_path / "logs" / "audit.log").read_text()
    assert [json.loads(line)["result"] for line in audit.splitlines()] == ["started", "done"]
