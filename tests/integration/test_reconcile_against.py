"""`reconcile --against FILE`: the ledger against the list of another system."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from email_ingestion.cli.main import app
from email_ingestion.ledger.store import open_ledger
from email_ingestion.reconcile.against_list import compare_with_list
from tests.contract.ledgers import letters, mail


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMAP_USER", "someone@example.com")
    ledger = open_ledger("sqlite:///data/email_ingestion.db")
    ledger.record(letters(*range(1, 51)))
    ledger.close()
    return tmp_path


def run(*arguments: str, stdin: str | None = None) -> tuple[int, dict]:
    result = CliRunner().invoke(app, ["reconcile", "--json", *arguments], input=stdin, standalone_mode=False)
    assert result.exception is None, result.exception
    return result.return_value, json.loads(result.stdout)


def test_random_holes_and_strangers_are_found_exactly(here: Path) -> None:
    rng = random.Random(7)
    messages = [mail(number) for number in range(1, 51)]
    gone = set(rng.sample(range(50), 13))
    kept = [message for number, message in enumerate(messages) if number not in gone]
    forms = [(each.email_id, each.message_id, f"Message-ID: {each.message_id}") for each in kept]
    lines = [rng.choice(names) for names in forms]
    lines += [f"<{number}@elsewhere.example>" for number in range(4)] + ["default:gm:999999"] + [lines[0], "", "  "]
    rng.shuffle(lines)
    (here / "ids.txt").write_text("\ufeff" + "\r\n".join(map(str, lines)))
    code, report = run("--against", "ids.txt")
    assert (code, report["missing"], report["not_ours"]) == (1, 13, 5)
    assert set(report["missing_ids"]) == {messages[number].email_id for number in gone}
    assert sum(report["missing_by_month"].values()) == 13
    (account,) = report["accounts"]
    assert (account["account"], account["ours"], account["missing"], account["not_ours"]) == ("default", 50, 13, 5)


def test_only_what_is_missing_there_makes_it_a_negative_answer(here: Path) -> None:
    everything = "".join(f"{mail(number).message_id}\n" for number in range(1, 51))
    assert run("--against", "-", stdin=everything + "<stranger@example.org>\n")[0] == 0
    code, report = run("--against", "-", stdin="")
    assert (code, report["missing"]) == (1, 50)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--against", "absent.txt"), "cannot read absent.txt"),
        (("--against", "ids.txt", "--repair"), "--repair"),
        (("--against", "binary"), "is no text"),
    ],
)
def test_a_list_that_cannot_be_compared_is_refused(here: Path, arguments: tuple[str, ...], words: str) -> None:
    (here / "ids.txt").write_text("")
    (here / "binary").write_bytes(b"\xff\xfe\x00")
    result = CliRunner().invoke(app, ["reconcile", *arguments])
    assert result.exit_code == 2  # 64 as a program
    assert words in result.output


def test_another_spelling_is_the_message_only_where_no_other_is_spelt_so(here: Path) -> None:
    ledger = open_ledger("sqlite:///data/email_ingestion.db")
    with ledger._database.begin() as connection:
        for uid, name in ((3, "<1tAbC-x@host>"), (4, "<1tABC-x@host>"), (5, "<1tABC-x@host>"), (6, "<a b@host>")):
            connection.exec_driver_sql("UPDATE emails SET message_id = ? WHERE uid = ?", (name, uid))
    others = [str(mail(number).message_id).upper() for number in range(1, 51) if number not in {3, 4, 5, 6}]

    def missing(*names: str) -> list[str]:
        comparison = compare_with_list(ledger, [*names, *others], ["default"])
        assert sum(each.not_ours for each in comparison.accounts.values()) == 0
        return comparison.named

    assert missing("<1tAbC-x@host>", "1tABC-x@host", "ab@host") == []
    assert missing("1TABC-X@HOST", "1tabc-x@host", "A B@HOST") == []
    assert missing("1tABC-x@host", "a b@host") == [mail(3).email_id]
    assert missing("1tAbC-x@host", "a b@host") == [mail(4).email_id, mail(5).email_id]
    assert missing("1tabc-x@host", "a b@host") == [mail(4).email_id, mail(5).email_id]
    ledger.close()


def test_a_file_in_which_nothing_is_ours_is_called_that(here: Path) -> None:
    (here / "people.txt").write_text("ann@example.org\nbob@example.org\n")
    result = CliRunner().invoke(app, ["reconcile", "--against", "people.txt"], standalone_mode=False)
    assert result.return_value == 1
    assert "not one of 2 names is ours: is people.txt a list of Message-IDs?" in result.output


def test_mail_without_a_message_id_is_not_missing_where_the_list_has_nothing_else(here: Path) -> None:
    ledger = open_ledger("sqlite:///data/email_ingestion.db")
    with ledger._database.begin() as connection:
        connection.exec_driver_sql("UPDATE emails SET message_id = NULL WHERE uid = 3")
    names = [f"{mail(number).message_id}" for number in range(1, 51) if number != 3]
    counts = compare_with_list(ledger, names, ["default"]).accounts["default"]
    assert (counts.missing, counts.unidentified) == (0, 1)
    with_ids = compare_with_list(ledger, [*names, mail(1).email_id], ["default"])
    assert with_ids.accounts["default"].missing == 1
    ledger.close()
