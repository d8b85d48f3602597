"""Pages of delivered mail: the same messages in the same order, whichever way the database looks for them."""

from __future__ import annotations

import pytest

from email_ingestion.ledger import mail_pages, sender_index, word_ranges
from email_ingestion.ledger.engine import QueryTooSlow
from email_ingestion.ledger.mail_pages import MailCount, PagePlace
from email_ingestion.ledger.search_filter import SearchFilter
from email_ingestion.ledger.store import Ledger
from email_ingestion.records import Address
from tests.contract.ledgers import mail, stored

MESSAGES = 60
QUERIES = (
    *("", "hello", "hello third", "hello -third", "third fifth", "rare", "rare third", "rare -third", "hello rare"),
    *('"hello there"', "hel*", "hel* -rare", "1.bin", "hello 1.bin", "nothing", "hello nothing", "-third", "?!"),
)
SENDERS = (
    *(Address("Ann", "ann@example.org"), Address("", "bob@example.org"), None, Address("Łukasz Ünal", "")),
    *(
        Address("ΑΛΦΑ 100%", "x" * 300 + "@example.com"),
        Address("N" * 5000 + "ann", "n@example.com"),
        Address("Ann", ""),
    ),
)
FILTERS = {
    "all": SearchFilter(),
    "account": SearchFilter(account="work"),
    "attachment": SearchFilter(has_attachment=True),
    "size": SearchFilter(min_size=10),
    "sender": SearchFilter(sender="NN"),
    "address": SearchFilter(sender="ob@exam", account="work"),
    "name": SearchFilter(sender="ünal", has_attachment=True),
    "greek": SearchFilter(sender="αλφα"),
    "whole field": SearchFilter(sender="ann*"),
    "end": SearchFilter(sender="*example.com"),
    "percent": SearchFilter(sender="0%"),
    "name and address": SearchFilter(sender="n a"),  # they are two fields
    "any sender": SearchFilter(sender="*"),
    "no such sender": SearchFilter(sender="_"),
}


@pytest.fixture
def filled(ledger: Ledger) -> Ledger:
    for number in range(MESSAGES):
        words = ["hello", "there" if number % 2 else "you", *(["third"] * (number % 3 == 0))]
        words += [*(["fifth"] * (number % 5 == 0)), *(["rare"] * (number in {7, 33}))]
        account = "work" if number % 4 == 0 else "default"
        files = (b"x",) if number % 6 == 0 else ()
        sender = SENDERS[number % len(SENDERS)]
        letter = mail(number, account=account, text=" ".join(words), attachments=files, sender=sender)
        ledger.record([stored(letter)])
    return ledger


def read(ledger: Ledger, words: str, only: SearchFilter, limit: int) -> list[str]:
    """All pages, one after the other."""
    found: list[str] = []
    place: PagePlace | None = None
    while page := ledger.pages.page(words, only, limit, place):
        assert len(page) <= limit
        found += [entry.email_id for entry in page]
        place = PagePlace.from_cursor(page[-1].place.cursor)
    return found


@pytest.mark.parametrize("only", FILTERS.values(), ids=FILTERS)
def test_every_way_of_looking_finds_the_same(
    filled: Ledger, only: SearchFilter, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {words: (read(filled, words, only, 100), filled.pages.count(words, only)) for words in QUERIES}
    assert MailCount(len(plain["hello"][0]), is_exact=True) == plain["hello"][1]
    for words in QUERIES:
        if words or not only.is_empty:
            assert plain[words][0] == [hit.email_id for hit in filled.mail_search.hits(words, 100, only)], words
    monkeypatch.setattr(sender_index, "MAX_SENDERS", 1)
    assert plain == {words: (read(filled, words, only, 100), filled.pages.count(words, only)) for words in QUERIES}
    monkeypatch.undo()
    for many, looked_at in ((1, 1000), (3, 5), (10, 2)):
        monkeypatch.setattr(mail_pages, "_MANY", many)
        monkeypatch.setattr(mail_pages, "_LOOKED_AT", looked_at)
        monkeypatch.setattr(mail_pages, "_READ_ANEW", looked_at)
        monkeypatch.setattr(mail_pages, "_COMMON_SHARE", 0.0)
        monkeypatch.setattr(mail_pages, "_MUCH", many)
        monkeypatch.setattr(word_ranges, "LOOKED_AT_ONCE", many)
        monkeypatch.setattr(word_ranges, "_GAP", looked_at)
        for words in QUERIES:
            assert read(filled, words, only, 7) == plain[words][0], (words, many)
            assert filled.pages.count(words, only) == plain[words][1], (words, many)
            most = filled.pages.count(words, only, maximum=4)
            few = len(plain[words][0]) <= 4
            assert most == (plain[words][1] if few else MailCount(4, is_exact=False)), (words, many)


@pytest.mark.parametrize("words", ["", "hello", "-hello"])
def test_sender_who_wrote_nothing_is_found_nowhere(ledger: Ledger, words: str) -> None:
    nobody = SearchFilter(sender="nobody")
    for _ in range(2):
        assert ledger.pages.page(words, nobody) == []
        assert ledger.pages.count(words, nobody) == MailCount(0, is_exact=True)
        ledger.record([stored(mail(1, text="hello", sender=Address("Ann", "ann@example.org")))])


def test_count_that_takes_too_long_says_more_than_how_many(filled: Ledger) -> None:
    whole = filled.pages.count("hello", seconds=60)
    assert whole == MailCount(MESSAGES, is_exact=True)
    assert filled.pages.count("hello", seconds=1e-9) == MailCount(0, is_exact=False)


def test_query_that_takes_too_long_is_ended(filled: Ledger) -> None:
    database = filled._database
    long = {
        "sqlite": "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n",
        "postgresql": "SELECT pg_sleep(600)",
    }
    with pytest.raises(QueryTooSlow), database.connect(0.2) as connection:
        connection.exec_driver_sql(long[connection.dialect.name])
    with database.connect() as connection:
        assert len(list(connection.exec_driver_sql("SELECT email_id FROM emails"))) == MESSAGES
    assert len(filled.pages.page("hello", seconds=60)) == 20


@pytest.mark.parametrize("text", ["", "x", "bnVsbA", "W10", "WzEsMl0", "é", "WyIyMDI2IiwiYSJd" * 3])
def test_a_text_that_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no cursor"):
        PagePlace.from_cursor(text)
