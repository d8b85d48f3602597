"""Searching means the same on every database, and no words break it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from email_ingestion.ledger.search import parse, postgresql_condition
from email_ingestion.ledger.search_filter import SearchFilter
from email_ingestion.ledger.store import Ledger, open_ledger
from email_ingestion.records import Address, Bounce, MailingList
from tests.contract.ledgers import EPOCH, letters, mail, stored
from tests.servers.postgres import fresh_schema

ANN = Address("Ann Müller", "ann.mueller@example.org")
BOB = Address("", "bob@shop.example")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Ledger]:
    """Opens a ledger of its own on one of the databases."""

    def open_one() -> Ledger:
        if request.param == "sqlite":
            return open_ledger(f"sqlite:///{tmp_path_factory.mktemp('archive')}/ledger.db")
        return open_ledger(fresh_schema(request.getfixturevalue("postgres_server")))

    return open_one


@pytest.fixture(scope="module")
def archive(empty: Callable[[], Ledger]) -> Iterator[Ledger]:
    """Some mail that is only read."""
    with closing(empty()) as ledger:
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
    assert [int(hit.email_id.rpartition(":")[2]) for hit in archive.mail_search.hits(words)] == found


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
    assert isinstance(archive.mail_search.hits(words), list)
    assert isinstance(archive.mail_search.hits("report " + words), list)


@pytest.fixture(scope="module")
def office(empty: Callable[[], Ledger]) -> Iterator[Ledger]:
    """The same with mail of every kind that can be asked for."""
    ana = Address("Ána Ødegård", "ana@corp.example")
    report = replace(
        mail(11, subject="Quarter 100%_done", sender=ana, attachments=(b"a", b"b")),
        cc=(Address("", "team@corp.example"),),
        tags=("Money", "Ünit"),
        priority=7,
    )
    names = ("Report-2026.PDF", "Übersicht Köln.xlsx")
    report = replace(
        report,
        attachments=tuple(replace(part, filename=name) for part, name in zip(report.attachments, names, strict=True)),
    )
    list_ = MailingList("dev.lists.example", (), (), (), one_click=False, archive=(), owner=(), help=())
    news = replace(mail(12, subject="News", sender=BOB), mailing_list=list_, priority=5)
    failed = replace(mail(13, subject="Failure"), bounce=Bounce(None, ()), priority=9, to=())
    with closing(empty()) as ledger:
        _fill(ledger)
        ledger.record([stored(each) for each in (report, news, failed)])
        yield ledger


DAY = EPOCH.replace(hour=0)


@pytest.mark.parametrize(
    ("words", "only", "found"),
    [
        ("", {"sender": "ana"}, [11]),
        ("", {"sender": "ODEGARD"}, []),  # ø is a letter of its own, in both databases
        ("", {"sender": "ØDEGARD"}, [11]),
        ("", {"sender": "*@corp.example"}, [11]),
        ("", {"sender": "@corp"}, [11]),
        ("", {"sender": "müll"}, [3, 2]),
        ("", {"recipient": "team@"}, [11]),
        ("", {"recipient": "name"}, []),
        ("", {"recipient": "ann@example.org", "subject": "inv"}, [4, 1]),
        ("", {"subject": "100%_"}, [11]),
        ("", {"subject": "0_0"}, []),
        ("", {"subject": "CAFE"}, [2]),
        ("", {"after": DAY.replace(hour=12)}, [13, 12]),
        ("", {"after": DAY.replace(hour=11), "before": DAY.replace(hour=12)}, [11]),
        ("", {"labels": ("inbox",), "subject": "news"}, [12]),
        ("", {"labels": ("\\Inbox", "GRÜSSE".replace("SS", "ß")), "subject": "news"}, [12]),
        ("", {"labels": ("inbo",)}, []),
        ("", {"tags": ("money", "unit")}, [11]),
        ("", {"tags": ("money", "nothing")}, []),
        ("", {"min_priority": 7}, [13, 11]),
        ("", {"min_priority": 7, "max_priority": 7}, [11]),
        ("", {"account": "other"}, [4]),
        ("", {"has_attachment": True}, [11]),
        ("letter", {"has_attachment": False}, []),
        ("invoice", {"has_attachment": False}, [4, 1]),
        ("", {"filename": "*.pdf"}, [11]),
        ("", {"filename": "report"}, [11]),
        ("", {"filename": "ubersicht kol"}, [11]),
        ("", {"filename": "*.doc"}, []),
        ("", {"list_id": "dev.lists"}, [12]),
        ("", {"bounce": True}, [13]),
        ("news", {"bounce": False}, [12]),
        ("-invoice", {"sender": "bob"}, [12]),
        ("🎉", {"sender": "bob"}, []),
        ("report-2026.pdf", {}, [11]),
        ("köln", {}, [11, 3]),
        ("quarter xlsx", {}, [11]),
        ("köln -xlsx", {}, [3]),
        ("übers*", {"sender": "ana", "tags": ("Money",)}, [11]),
        ("", {"sender": "\udc80"}, []),
        ("", {"sender": "a\0b"}, []),
        ("", {"subject": "x" * 100_000}, []),
        ("", {"filename": "**"}, [11]),
    ],
)
def test_conditions_mean_the_same_on_every_database(
    office: Ledger, words: str, only: dict[str, Any], found: list[int]
) -> None:
    condition = SearchFilter(**only)
    assert [int(hit.email_id.rpartition(":")[2]) for hit in office.mail_search.hits(words, only=condition)] == found
    assert office.mail_search.count(words, condition) == len(found)


def test_a_hit_tells_the_names_of_its_attachments(office: Ledger) -> None:
    [hit] = office.mail_search.hits("report-2026")
    assert hit.attachments == ("Report-2026.PDF", "Übersicht Köln.xlsx")


def test_hits_are_counted_up_to_a_maximum(ledger: Ledger) -> None:
    ledger.record(letters(*range(12)))
    assert [ledger.mail_search.count("letter", maximum=most) for most in (5, 11, 12, 1000)] == [6, 12, 12, 12]
    assert ledger.mail_search.count("") == 0


def test_a_short_id_means_one_message_and_is_taken(ledger: Ledger) -> None:
    numbers = (1786881717043200001, 1786881717043200002, 1786881990000000000, 1786881, 17, 1799999999999999999)
    ledger.record(
        [stored(mail(n, gm_msgid=number)) for n, number in enumerate(numbers)]
        + [stored(mail(7, gm_msgid=numbers[2], account="work"))]
    )
    ids = [f"default:gm:{number}" for number in numbers]
    short = ledger.mail_search.short_ids([*ids, f"work:gm:{numbers[2]}"])
    assert short[ids[0]] == "1786881717043200001"
    assert short[ids[5]] == "179999"
    for whole, part in short.items():
        exact = ledger.known_ids([part])
        assert list(exact) == [whole] or ledger.mail_search.matching_ids(part) == [whole]
    assert ledger.mail_search.matching_ids("default:gm:17999") == [ids[5]]
    assert ledger.mail_search.matching_ids("gm:17999") == [ids[5]]
    assert ledger.mail_search.matching_ids("178688199") == [ids[2], f"work:gm:{numbers[2]}"]
    for meaningless in ("default", "DEFAULT:gm:17", "%"):
        assert ledger.mail_search.matching_ids(meaningless) == []


def test_limit_and_account_narrow_a_search(archive: Ledger) -> None:
    assert [hit.email_id for hit in archive.mail_search.hits("invoice", limit=1)] == ["other:gm:4"]
    assert [hit.email_id for hit in archive.mail_search.hits("invoice", only=SearchFilter(account="default"))] == [
        "default:gm:1"
    ]


def test_a_hit_shows_where_the_words_are(ledger: Ledger) -> None:
    far = "word " * 200 + "needle\n\nin   a haystack " + "word " * 200
    ledger.record([stored(mail(9, subject="Far", text=far, sender=ANN))])
    [hit] = ledger.mail_search.hits("needle")
    assert hit.sender == "Ann Müller <ann.mueller@example.org>"
    assert (hit.subject, hit.date) == ("Far", EPOCH.replace(hour=9))
    assert "needle in a haystack" in hit.snippet
    assert len(hit.snippet) < 170


def test_a_sender_without_a_name_is_an_address(archive: Ledger) -> None:
    assert [hit.sender for hit in archive.mail_search.hits("pay")] == ["bob@shop.example"]


def test_vacuum_does_not_shuffle_the_index(ledger: Ledger, database_url: str) -> None:
    ledger.record([*letters(*range(20)), stored(mail(99, subject="needle"))])
    engine = create_engine(database_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("DELETE FROM emails WHERE uid < 15"))
        connection.execute(text("VACUUM"))
    engine.dispose()
    assert [hit.email_id for hit in ledger.mail_search.hits("needle")] == ["default:gm:99"]
    assert len(ledger.mail_search.hits("letter")) == 5


def test_a_deleted_message_may_come_back(ledger: Ledger, database_url: str) -> None:
    ledger.record([stored(mail(1, subject="needle"))])
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM attachments"))
        connection.execute(text("DELETE FROM emails"))
    engine.dispose()
    assert ledger.mail_search.hits("needle") == []
    assert ledger.record([stored(mail(1, subject="needle"))]) == {"default:gm:1"}
    assert len(ledger.mail_search.hits("needle")) == 1


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
