"""Searching means the same on every database, and no words break it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
from sqlalchemy import create_engine, text

from email_ingestion.ledger.search import parse, postgresql_condition
from email_ingestion.ledger.store import Ledger, open_ledger
from email_ingestion.records import Address
from tests.contract.ledgers import EPOCH, letters, mail, stored
from tests.servers.postgres import fresh_schema

ANN = Address("Ann Müller", "ann.mueller@example.org")
BOB = Address("", "bob@shop.example")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def archive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """Some mail that is only read."""
    with ExitStack() as stack:
        if request.param == "sqlite":
            url = f"sqlite:///{tmp_path_factory.mktemp('archive')}/ledger.db"
        else:
            url = fresh_schema(request.getfixturevalue("postgres_server"))
        ledger = stack.enter_context(closing(open_ledger(url)))
        _fill(ledger)
        yield ledger


def _fill(ledger: Ledger) -> None:
    ledger.record(
        [
            stored(mail(1, subject="Invoice 2026-17", text="Please pay within ten days.", sender=BOB)),
            stored(mail(2, subject="Re: Café", text="The quarterly report is late, e-mail me.", sender=ANN)),
            stored(mail(3, subject="Party 🎉", text="Grüße aus Köln! Our report, quarterly.", sender=ANN)),
            stored(mail(4, subject="Invoice", text="draft", sender=BOB, account="other")),
        ]
    )


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("invoice", [4, 1]),
        ("INVOICE pay", [1]),
        ("invoice -draft", [1]),
        ("quarterly report", [3, 2]),
        ('"quarterly report"', [2]),
        ('"quarterly report', [2]),
        ('report -"quarterly report"', [3]),
        ("quarter*", [3, 2]),
        ('"pay within t"*', [1]),
        ("quarter", []),
        ("example", [4, 3, 2, 1]),
        ("ann.mueller@example.org", [3, 2]),
        ("bob", [4, 1]),
        ("müller", [3, 2]),
        ("muller", [3, 2]),
        ("cafe", [2]),
        ("Cafe\u0301", [2]),
        ("grüße köln", [3]),
        ("e-mail", [2]),
        ("2026-17", [1]),
        ("party 🎉", [3]),
        ("🎉", []),
        ("nowhere", []),
        ("", []),
        ("-invoice", []),
    ],
)
def test_words_find_messages_newest_first(archive: Ledger, words: str, found: list[int]) -> None:
    assert [int(hit.email_id.rpartition(":")[2]) for hit in archive.search(words)] == found


@pytest.mark.parametrize(
    "words",
    [
        '"', '""', '"""',
        "*", "**", "-", "--", "AND", "OR NOT", "NEAR(a b)", "subject:x", "a-b", "a:b", "^a", "{a b}:c",
        "(", ")", "a)", "'", "''", "\\", "a\\", "%", "_", ":*", "a:*", "a*b*", "!a & | b", "<->", "a <2> b", ";--",
        "a\0b", "\udc80", "\u0301", "ﬁ", "²", "½", "1e5", "-1.5", "+", "\n\t", "नमस्ते", "漢字", "\U0001d54f", "\ufdfa*",
        "a " * 5_000, "a" * 5_000, '"' + "b " * 5_000 + '"', "-a " * 500 + "b", 'x" OR "y', ":term0", "%(term0)s", "?",
    ],
)  # fmt: skip
def test_no_words_break_a_search(archive: Ledger, words: str) -> None:
    assert isinstance(archive.search(words), list)
    assert isinstance(archive.search("report " + words), list)


def test_limit_and_account_narrow_a_search(archive: Ledger) -> None:
    assert [hit.email_id for hit in archive.search("invoice", limit=1)] == ["other:gm:4"]
    assert [hit.email_id for hit in archive.search("invoice", account="default")] == ["default:gm:1"]


def test_a_hit_shows_where_the_words_are(ledger: Ledger) -> None:
    far = "word " * 200 + "needle\n\nin   a haystack " + "word " * 200
    ledger.record([stored(mail(9, subject="Far", text=far, sender=ANN))])
    [hit] = ledger.search("needle")
    assert hit.sender == "Ann Müller <ann.mueller@example.org>"
    assert (hit.subject, hit.date) == ("Far", EPOCH.replace(hour=9))
    assert "needle in a haystack" in hit.snippet
    assert len(hit.snippet) < 170


def test_a_sender_without_a_name_is_an_address(archive: Ledger) -> None:
    assert [hit.sender for hit in archive.search("pay")] == ["bob@shop.example"]


def test_vacuum_does_not_shuffle_the_index(ledger: Ledger, database_url: str) -> None:
    ledger.record([*letters(*range(20)), stored(mail(99, subject="needle"))])
    engine = create_engine(database_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("DELETE FROM emails WHERE uid < 15"))
        connection.execute(text("VACUUM"))
    engine.dispose()
    assert [hit.email_id for hit in ledger.search("needle")] == ["default:gm:99"]
    assert len(ledger.search("letter")) == 5


def test_a_deleted_message_may_come_back(ledger: Ledger, database_url: str) -> None:
    ledger.record([stored(mail(1, subject="needle"))])
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM attachments"))
        connection.execute(text("DELETE FROM emails"))
    engine.dispose()
    assert ledger.search("needle") == []
    assert ledger.record([stored(mail(1, subject="needle"))]) == {"default:gm:1"}
    assert len(ledger.search("needle")) == 1


def test_postgresql_answers_from_its_index(postgres_url: str) -> None:
    with closing(open_ledger(postgres_url)) as ledger:
        ledger.record(letters(*range(50)))
    engine = create_engine(postgres_url)
    with engine.connect() as connection:
        connection.execute(text("SET enable_seqscan = off"))
        condition = postgresql_condition(parse("needle hay*"))
        plan = connection.execute(
            text(f"EXPLAIN SELECT 1 FROM emails WHERE {condition.text}"),
            condition.compile().params,
        ).scalars()
        assert any("emails_words" in line for line in plan)
    engine.dispose()
