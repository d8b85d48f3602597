"""The parser process: the same records, and nobody else dies of a message."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from email_ingestion.errors import ParserDied
from email_ingestion.parsing import parse
from email_ingestion.parsing.isolated import IsolatedParser
from tests.servers.links import message
from tests.servers.poison import poisoned_python
from tests.unit.parsing.messages import envelope

CORPUS = Path(__file__).parents[2] / "corpus"
RICH = ("abuse-report", "bounce-several", "calendar-cancel", "enclosed-thrice", "list-one-click", "verdicts-gmail")


@pytest.fixture
def parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[IsolatedParser]:
    monkeypatch.setenv("PYTHONPATH", poisoned_python(tmp_path / "site"))
    with closing(IsolatedParser(timeout=2.0)) as isolated:
        yield isolated


def _parsers() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(os.getpid()).children()
        if "email_ingestion.parsing.parser_process" in child.cmdline()
    ]


def _pair(number: int, poison: str = ""):
    head = f"X-Poison: {poison}\r\n" if poison else ""
    made = message(number, raw=f"{head}Subject: letter {number}\r\n\r\nhello".encode())
    return made.envelope, made.raw


def test_the_records_are_those_of_the_parser_itself(parser: IsolatedParser):
    batch = [_pair(number) for number in range(50)]
    batch += [(envelope(), (CORPUS / f"{name}.eml").read_bytes()) for name in RICH]
    assert parser.parse(list(batch)) == [parse(envelope, raw) for envelope, raw in batch]


@pytest.mark.parametrize(("poison", "words"), [("abort", "died with -6"), ("loop", "longer than 2 s")])
def test_a_message_that_kills_or_stalls_it_is_an_error_and_the_next_batch_works(
    parser: IsolatedParser, poison: str, words: str
):
    with pytest.raises(ParserDied, match=words):
        parser.parse([_pair(1), _pair(2, poison), _pair(3)])
    assert [record.subject for record in parser.parse([_pair(3)])] == ["letter 3"]


def test_a_message_that_eats_memory_is_stopped(parser: IsolatedParser):
    try:
        records = parser.parse([_pair(1, "memory")])
    except ParserDied:
        return
    assert "parse:failed" in records[0].defects


def test_a_parser_killed_from_outside_is_started_again(parser: IsolatedParser):
    parser.parse([])
    (child,) = _parsers()
    child.kill()
    with pytest.raises(ParserDied, match="died with -9"):
        parser.parse([_pair(1)])
    assert len(parser.parse([_pair(1)])) == 1


def test_closing_ends_the_process(parser: IsolatedParser):
    parser.parse([_pair(1)])
    parser.close()
    assert _parsers() == []


def test_large_messages_are_not_kept_beside_their_records(parser: IsolatedParser):
    batch = [_pair(1)]
    parser.parse(batch)
    assert batch == []
