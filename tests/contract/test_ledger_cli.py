"""`email-ingestion search` as an operator and as a script see it."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from email_ingestion.cli.delivered_mail import search
from email_ingestion.ledger.store import open_ledger
from email_ingestion.records import Address
from tests.contract.ledgers import letters, mail, stored

app = typer.Typer()
app.command()(search)


@pytest.fixture(autouse=True)
def archive(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", sqlite_url)
    eve = Address("Eve", "eve@example.org")
    with closing(open_ledger(sqlite_url)) as ledger:
        ledger.record([*letters(1, 2), stored(mail(3, subject="[red]Bad\x1b[2J[/nothing]", text="boo\n", sender=eve))])


def test_hits_are_lines_for_a_script() -> None:
    result = CliRunner().invoke(app, ["letter"])
    assert result.exit_code == 0
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == ["default:gm:2", "default:gm:1"]


def test_hits_are_records_with_json() -> None:
    result = CliRunner().invoke(app, ["--json", "--limit", "1", "letter", "hello"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == [
        {
            "email_id": "default:gm:2",
            "date": "2026-01-01T02:00:00+00:00",
            "sender": "",
            "subject": "A letter",
            "snippet": "Hello",
        }
    ]


def test_no_hit_is_exit_code_1() -> None:
    assert CliRunner().invoke(app, ["nowhere"]).exit_code == 1
    result = CliRunner().invoke(app, ["--json", "nowhere"])
    assert (result.exit_code, json.loads(result.stdout)) == (1, [])


@pytest.mark.parametrize("terminal", [True, False])
def test_a_subject_writes_nothing_to_the_terminal_but_itself(
    monkeypatch: pytest.MonkeyPatch, *, terminal: bool
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(app, ["boo"])
    assert "[red]Bad [2J[/nothing]" in result.stdout
    assert "\x1b[2J" not in result.stdout
