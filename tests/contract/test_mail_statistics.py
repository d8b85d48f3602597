"""How much mail arrives at this hour, as in past weeks, and how well formed it is; on both databases."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from email_ingestion.ledger.mail_statistics import FEW, MailVolume, domain_of
from email_ingestion.ledger.store import Ledger
from email_ingestion.records import Address, AuthenticationResults, Email
from tests.contract.ledgers import mail, stored

NOW = datetime(2026, 3, 30, 12, 0, tzinfo=UTC)
WEEK = timedelta(weeks=1)


def arrive(ledger: Ledger, first: int, count: int, at: datetime, account: str = "default") -> None:
    letters = []
    for number in range(first, first + count):
        letter = mail(number, account=account)
        letters.append(stored(replace(letter, envelope=replace(letter.envelope, internaldate=at))))
    ledger.record(letters)


def test_an_hour_is_compared_with_the_same_hour_of_the_weeks_an_account_has(ledger: Ledger):
    half = timedelta(minutes=30)
    for week, count in enumerate((5, 30, 20, 40)):
        arrive(ledger, 1000 * (week + 1), count, NOW - week * WEEK - half)
    arrive(ledger, 90_000, 9, NOW - WEEK - 3 * half)  # another hour
    arrive(ledger, 95_000, 1, NOW - 3 * WEEK - 4 * half)  # its first mail
    arrive(ledger, 99_000, 3, NOW - half, "new")
    found = ledger.statistics.volume(["default", "new", "empty"], NOW)
    assert found["default"] == MailVolume(5, (30, 20, 40))
    assert (found["default"].expected, found["default"].anomaly) == (30, "low")
    assert (found["new"], found["new"].anomaly) == (MailVolume(3, ()), None)
    assert found["empty"] == MailVolume(0, ())


def test_small_numbers_are_never_unusual_and_weeks_without_mail_count_as_none():
    assert MailVolume(0, (FEW, FEW, FEW)).anomaly is None
    assert MailVolume(0, (0, 0, 0, 0)).anomaly is None
    assert MailVolume(FEW, (0, 0, 0, 0)).anomaly is None
    assert MailVolume(FEW + 1, (0, 0, 0, 0)).anomaly == "high"
    assert MailVolume(500, (0, 300, 310, 290)).anomaly is None  # one week of holidays
    assert MailVolume(90, (300, 310, 290)).anomaly == "low"


def formed(number: int, sender: str | None, *, text: str = "Hello", html: str | None = None, **parts: object) -> Email:
    letter = mail(number, sender=Address("", sender) if sender is not None else None, text=text)
    envelope = replace(letter.envelope, internaldate=NOW - timedelta(hours=number))
    return replace(letter, envelope=envelope, html=html, **parts)


def test_quality_counts_messages_by_defect_verdict_and_domain(ledger: Ledger):
    passed = AuthenticationResults("pass", "pass", "fail")
    ledger.record(
        [
            stored(formed(1, "a@good.example", verdicts=passed)),
            stored(formed(2, "b@Bad.Example", defects=("charset:wrong", "date:invalid"), date=None)),
            stored(formed(3, "c@bad.example", defects=("charset:wrong",), text=" \r\n\t", html=None)),
            stored(formed(4, None, text="", html="<p>x</p>")),
            stored(formed(400, "d@old.example", defects=("date:missing",))),
        ]
    )
    found = ledger.statistics.quality(NOW - timedelta(days=7))
    assert (found.messages, found.defective, found.unreadable_dates, found.empty_bodies) == (4, 2, 1, 1)
    assert found.defects == {"charset:wrong": 2, "date:invalid": 1}
    assert found.verdicts["dmarc"] == {"fail": 1, "no verdict": 3}
    assert found.by_domain == {"good.example": 1, "bad.example": 2, "(no address)": 1}
    assert found.defective_by_domain == {"bad.example": 2}
    assert ledger.statistics.quality(NOW - timedelta(days=7), "other").messages == 0


def test_a_domain_is_read_from_whatever_stands_as_an_address():
    assert [domain_of(each) for each in ("a@x.example", "a@b@X.example.", "none")] == ["x.example", "x.example", "none"]
    assert domain_of("") == domain_of(None) == "(no address)"
