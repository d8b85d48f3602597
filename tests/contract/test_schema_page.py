"""docs/schema.md names every table and column, and its examples run on both databases."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from email_ingestion.ledger.store import Ledger, open_ledger
from email_ingestion.ledger.tables import metadata
from tests.servers.api import letter
from tests.servers.processes import ROOT
from tests.unit.test_docs import fences

PAGE = ROOT / "docs" / "schema.md"
RAW = b"From: Ann <ann@example.org>\r\nTo: bob@example.com\r\nSubject: quarterly report\r\n\r\nas promised\r\n"


def named() -> dict[str, set[str]]:
    """The tables of the page, and the columns of each."""
    text = PAGE.read_text()
    found: dict[str, set[str]] = {}
    for heading, rest in re.findall(r"^## (\w+): [^\n]*\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL):
        cells = re.findall(r"^\| (`[^|]*) \|", rest, re.MULTILINE)
        found[heading] = set(re.findall(r"`(\w+)`", " ".join(cells)))
    for table, columns in re.findall(r"^\| `(\w+)` \| (`\w+` `[^|]*) \|", text, re.MULTILINE):
        if table in metadata.tables:
            found[table] = set(re.findall(r"`(\w+)`", columns))
    return found


def test_every_table_and_column_is_named() -> None:
    assert named() == {table.name: set(table.columns.keys()) for table in metadata.tables.values()}


def queries(*languages: str) -> Iterator[str]:
    for language in languages:
        for block in fences(PAGE, {language}):
            yield from block.strip().splitlines()


def test_the_examples_find_what_they_say(ledger: Ledger) -> None:
    ledger.record([letter(1, RAW)])
    engine = ledger._database.engine
    own = "sqlite" if engine.dialect.name == "sqlite" else "postgresql"
    rows: dict[str, list[Any]] = {}
    with engine.connect() as connection:
        for query in queries("sql", own):
            rows[query] = list(connection.exec_driver_sql(query.replace("%", "%%")))
    specific = list(queries(own))
    assert len(specific) == 4
    assert all(len(rows[query]) == 1 for query in specific)


def test_the_raw_bytes_are_those_of_the_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(open_ledger("sqlite:///data/email_ingestion.db")) as ledger:
        ledger.record([letter(1, RAW)])
    (program,) = fences(PAGE, {"python"})
    names: dict[str, Any] = {}
    exec(program, names)
    assert names["raw"] == RAW
    assert isinstance(names["database"], sqlite3.Connection)
    names["database"].close()
