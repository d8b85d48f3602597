"""Commands in a locale that cannot say what is typed or shown, and with paths that are no text."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from email_ingestion.ledger.copy_check import open_examined

MAIL = (
    "Subject: Grüße 🎉\r\nFrom: a@example.org\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n日本語 €\r\n".encode()
)
BARE = {
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
}  # like Latin-1, which few machines have


def parsed(path: bytes, **locale: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "email_ingestion", "parse", path],
        env={"PATH": os.environ["PATH"], **locale},
        cwd=os.path.dirname(path),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode("utf-8", "surrogateescape")


@pytest.mark.parametrize("locale", [{}, BARE, {"LC_ALL": "C.UTF-8"}], ids=["none", "ascii", "utf-8"])
def test_a_command_reads_and_says_letters_in_every_locale(tmp_path: Path, locale: dict[str, str]):
    path = os.fsencode(tmp_path) + "/Grüße.eml".encode()
    Path(os.fsdecode(path)).write_bytes(MAIL)
    said = parsed(path, **locale)
    assert "Grüße.eml" in said.replace("\n", "")  # a long path is broken
    assert "Grüße 🎉" in said
    assert "日本語 €" in said


def test_what_the_output_cannot_say_is_escaped(tmp_path: Path):
    (tmp_path / "a.eml").write_bytes(MAIL)
    said = parsed(os.fsencode(tmp_path / "a.eml"), PYTHONIOENCODING="latin-1:strict", PYTHONUTF8="1")
    assert "\\U0001f389" in said


def test_a_path_need_not_be_text(tmp_path: Path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    with open(folder + b"/a.eml", "wb") as file:
        file.write(MAIL)
    assert "Grüße" in parsed(folder + b"/a.eml", LC_ALL="C.UTF-8")
    copy = Path(os.fsdecode(folder + b"/copy.db"))
    with closing(sqlite3.connect(copy)) as database:
        database.execute("CREATE TABLE emails (email_id TEXT)")
    with open_examined(copy) as found:
        assert found.execute("SELECT count(*) FROM emails").fetchone() == (0,)
