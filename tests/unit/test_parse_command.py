"""`email-ingestion parse`: the record of a message on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from email_ingestion.cli.main import app

CORPUS = Path(__file__).parents[1] / "corpus"


def test_the_text_shows_what_the_record_holds() -> None:
    shown = CliRunner().invoke(app, ["parse", str(CORPUS / "report-dsn-one-group.eml")])
    assert shown.exit_code == 0
    assert "From          ann@example.com" in shown.output
    assert "Bounce        n@example.org: failed, 5.1.1" in shown.output
    assert "Defects       none" in shown.output
    assert shown.output.endswith("\n\nx\n")


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.eml")), ids=lambda path: path.stem)
def test_every_message_fits_the_screen(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    shown = CliRunner().invoke(app, ["parse", path.name])
    assert shown.exit_code == 0
    assert max(map(cell_len, shown.output.split("\n"))) <= 80
    assert all(line.isprintable() for line in shown.output.split("\n"))


def test_the_json_is_what_sinks_get() -> None:
    raw = (CORPUS / "mime-tnef.eml").read_bytes()
    shown = CliRunner().invoke(app, ["parse", "--json", "-"], input=raw)
    record = json.loads(shown.output)
    assert (record["schema"], record["size"]) == ("email.v1", len(raw))
    assert record["attachments"][0]["filename"] == "winmail.dat"


def test_several_files_follow_each_other() -> None:
    names = [str(CORPUS / "empty.eml"), str(CORPUS / "binary.eml")]
    assert CliRunner().invoke(app, ["parse", *names]).output.count("Defects ") == 2
    assert CliRunner().invoke(app, ["parse", "--json", *names]).output.count('"schema": "email.v1"') == 2


def test_a_file_that_is_not_there_is_named() -> None:
    shown = CliRunner().invoke(app, ["parse", "nowhere.eml"])
    assert shown.exit_code != 0
    assert "cannot read nowhere.eml" in str(shown.exception)
