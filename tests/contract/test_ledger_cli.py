"""`email-ingestion search` as an operator and as a script see it."""

from __future__ import annotations

import json
import re
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
import typer
import typer.rich_utils  # it reads FORCE_COLOR when it is imported, for all tests of this process
from typer.testing import CliRunner

from email_ingestion.cli.delivered_mail import export, search
from email_ingestion.cli.main import app as every_command
from email_ingestion.cli.route import route
from email_ingestion.errors import OperationFailed
from email_ingestion.ledger.store import open_existing_ledger, open_ledger
from email_ingestion.records import Address
from tests.contract.ledgers import EPOCH, letters, mail, stored

app = typer.Typer()
app.command()(search)
app.command()(export)

ANSI = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(autouse=True)
def archive(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", sqlite_url)
    eve = Address("Eve", "eve@example.org")
    with closing(open_ledger(sqlite_url)) as ledger:
        ledger.record([*letters(1, 2), stored(mail(3, subject="[red]Bad\x1b[2J[/nothing]", text="boo\n", sender=eve))])


def test_hits_are_lines_for_a_script() -> None:
    result = CliRunner().invoke(app, ["search", "letter"])
    assert result.exit_code == 0
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert [line[0] for line in lines] == ["email_id", "default:gm:2", "default:gm:1"]
    assert lines[0] == ["email_id", "date", "sender", "subject", "snippet"]


def test_hits_are_records_with_json() -> None:
    result = CliRunner().invoke(app, ["search", "--json", "--limit", "1", "letter", "hello"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == [
        {
            "email_id": "default:gm:2",
            "date": "2026-01-01T02:00:00+00:00",
            "sender": "",
            "subject": "A letter",
            "snippet": "Hello",
            "attachments": [],
        }
    ]


def test_no_hit_is_exit_code_1() -> None:
    assert CliRunner().invoke(app, ["search", "nowhere"]).exit_code == 1
    result = CliRunner().invoke(app, ["search", "--json", "nowhere"])
    assert (result.exit_code, json.loads(result.stdout)) == (1, [])


@pytest.mark.parametrize(
    "words",
    [
        *(["search", "letter"], ["search", "--json", "letter"], ["export", "default:gm:1"], ["quality"], ["reparse"]),
        *(["tokens", "list"], ["retention", "hold", "list"], ["route", "test", "default:gm:1"]),
    ],
)
def test_a_look_where_nothing_was_delivered_makes_no_database_and_is_no_answer(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "sqlite:///elsewhere/mail.db")
    result = CliRunner().invoke(every_command, words)
    assert isinstance(result.exception, OperationFailed)
    assert "elsewhere/mail.db is not there yet: nothing was delivered yet, or DATABASE_URL" in str(result.exception)
    assert result.stdout == ""
    assert not (tmp_path / "elsewhere").exists()


def test_a_look_into_a_database_that_is_another_s_makes_no_tables_in_it(postgres_url: str) -> None:
    with pytest.raises(OperationFailed, match="holds no tables of ours"):
        open_existing_ledger(postgres_url)
    open_ledger(postgres_url).close()
    with closing(open_existing_ledger(postgres_url)) as ledger:
        assert ledger.count() == 0


@pytest.mark.parametrize("terminal", [True, False])
def test_a_subject_writes_nothing_to_the_terminal_but_itself(
    monkeypatch: pytest.MonkeyPatch, *, terminal: bool
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(app, ["search", "boo"])
    assert "[red]Bad [2J[/nothing]" in result.stdout
    assert "\x1b[2J" not in result.stdout


@pytest.fixture
def many(sqlite_url: str) -> None:
    with closing(open_ledger(sqlite_url)) as ledger:
        ledger.record(
            [stored(mail(n, gm_msgid=1786881717043200000 + n * 7_000_000, subject="Crowd")) for n in range(100, 1105)]
        )


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.usefixtures("many")
def test_a_terminal_shows_ids_that_export_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_terminal(monkeypatch)
    result = CliRunner().invoke(app, ["search", "crowd"])
    lines = ANSI.sub("", result.stdout).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "20 of more than 1,000"
    ids = [line.split()[0] for line in lines[1:-1:2]]
    assert len(ids) == len(set(ids)) == 20
    assert all(6 <= len(each) < 19 for each in ids)
    for each in ids:
        assert CliRunner().invoke(app, ["export", each, "--json"]).exit_code == 0
    assert CliRunner().invoke(app, ["export", ids[0][:5]]).exit_code == 2  # BadParameter: 64 as a whole program


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize(
    ("arguments", "last"), [(["--limit", "7"], "7 of 134"), (["--limit", "200"], None)], ids=["more", "all"]
)
def test_it_is_said_how_many_there_are(arguments: list[str], last: str | None) -> None:
    after = (EPOCH + timedelta(hours=1105 - 134)).isoformat()
    result = CliRunner().invoke(app, ["search", "--after", after, *arguments])
    assert len(result.stdout.splitlines()) == (8 if last else 135)
    assert result.stderr == (f"{last}\n" if last else "")


@pytest.mark.usefixtures("many")
def test_an_ambiguous_id_lists_what_it_may_be() -> None:
    result = CliRunner().invoke(app, ["export", "17868817"])
    assert result.exit_code == 2
    assert result.stderr.count("  default:gm:17868817") == 10
    assert "and 990 more" in result.stderr
    result = CliRunner().invoke(app, ["export", "99999999"])
    assert (result.exit_code, result.stderr.count("is not in the database")) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "say what to look for"),
        (["--after", "yesterday"], "--after takes a date"),
        (["--before", "2026-02-30"], "--before takes a date"),
        (["--after", "2026-02-01", "--before", "2026-01-01"], "--after must be earlier"),
        (["--after", "999999w"], "before all dates"),
        (["--after", "7y"], "--after takes a date"),
        (["--account", "nobody"], "configured: default"),
        (["--priority", "11"], "--priority is 0 to 10"),
        (["--priority", "high"], "--priority is 0 to 10"),
    ],
)
def test_what_cannot_be_understood_is_a_sentence(arguments: list[str], sentence: str) -> None:
    result = CliRunner().invoke(app, ["search", *arguments])
    assert result.exit_code == 2  # a UsageError, which `leave` makes 64
    assert sentence in " ".join(ANSI.sub("", result.stderr).replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--from", "eve"], ["3"]),
        (["--from", "eve", "letter"], []),
        (["--after", "2026-01-01T02:00", "--before", "2026-01-01T03:00:00+00:00"], ["2"]),
        (["--after", "2026-01-01", "--before", "2026-01-02", "--account", "default", "letter"], ["2", "1"]),
        (["--after", "1d"], []),
        (["--label", "inbox", "--label", "Grüße", "-n", "1"], ["3"]),
        (["--no-attachment", "boo"], ["3"]),
        (["--priority", "0+"], ["3", "2", "1"]),
    ],
)
def test_options_narrow_a_search(arguments: list[str], found: list[str]) -> None:
    result = CliRunner().invoke(app, ["search", "--json", *arguments])
    assert [each["email_id"].rpartition(":")[2] for each in json.loads(result.stdout)] == found
    assert result.exit_code == (0 if found else 1)


def test_the_route_of_a_delivered_message_is_told_by_its_id(tmp_path: Path) -> None:
    routes = typer.Typer()
    routes.add_typer(route, name="route")
    config = tmp_path / "config"
    config.mkdir()
    (config / "settings.toml").write_text('[[routes]]\nname = "inbox"\nlabel = "\\\\Inbox"\ntags = ["seen"]\n')
    result = CliRunner().invoke(routes, ["route", "test", "--json", "default:gm:2"])
    assert (result.exit_code, json.loads(result.stdout)["tags"]) == (0, ["seen"]), result.output
    assert CliRunner().invoke(routes, ["route", "test", "default:gm"]).exit_code == 1  # no file
    assert CliRunner().invoke(routes, ["route", "test", "default:gm:9"]).exit_code == 1  # not delivered
    assert CliRunner().invoke(routes, ["route", "test", "12345"]).exit_code == 2  # too short
