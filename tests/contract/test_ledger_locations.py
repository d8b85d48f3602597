"""The ledger tells where on the server each message was: what reconciliation goes by, on each database we speak."""

from __future__ import annotations

from datetime import UTC, datetime

from email_ingestion.blobs import reference
from email_ingestion.ledger.model import Location, StoredEmail
from email_ingestion.ledger.store import Ledger
from email_ingestion.parsing import parse
from tests.servers.links import message


def record(ledger: Ledger, *messages) -> None:
    parsed = [(parse(each.envelope, each.raw), reference(each.envelope.sha256)) for each in messages]
    ledger.record([StoredEmail(email, ref) for email, ref in parsed])


def test_the_ledger_tells_where_messages_came_from(ledger: Ledger):
    record(ledger, message(1), message(2, uidvalidity=2**32 - 1))
    ids = ["default:gm:1001", "default:gm:1002", "default:gm:1003"]
    assert ledger.first_locations(ids) == {ids[0]: Location("INBOX", 1, 1), ids[1]: Location("INBOX", 2**32 - 1, 2)}


def test_the_ledger_remembers_places_only_of_messages_it_has(ledger: Ledger):
    record(ledger, message(1), message(2))
    again = {Location("INBOX", 7, uid): f"default:gm:{1000 + uid}" for uid in (1, 2)}
    ledger.record_locations("default", again)
    ledger.record_locations("default", again)
    ledger.record_locations("default", {Location("INBOX", 7, 2): "default:gm:1001"})
    ledger.record_locations("default", {})
    assert ledger.other_locations("default", "INBOX", 7, 1, 9) == dict.fromkeys((1, 2), Location("INBOX", 1, 1))
    assert ledger.other_locations("default", "INBOX", 7, 2, 2) == {2: Location("INBOX", 1, 1)}
    assert ledger.other_locations("other", "INBOX", 7, 1, 9) == {}


def test_the_ledger_tells_whether_it_has_mail_of_an_account(ledger: Ledger):
    assert not ledger.has_mail("default")
    record(ledger, message(1))
    assert ledger.has_mail("default")
    assert not ledger.has_mail("other")
    ledger.record_purged(["default:gm:2"])
    assert ledger.has_mail("other")


def test_the_ledger_tells_when_it_began(ledger: Ledger):
    assert ledger.first_delivery_date("default", "INBOX") is None
    dates = [datetime(2026, month, 1, tzinfo=UTC) for month in (5, 4, 6)]
    places = [(1, 10), (2, 3), (2, 4)]
    for number, ((uidvalidity, uid), date) in enumerate(zip(places, dates, strict=True)):
        record(ledger, message(uid, uidvalidity=uidvalidity, gm_msgid=number, internaldate=date))
    record(ledger, message(2, gm_msgid=77, mailbox="Other", internaldate=datetime(2020, 1, 1, tzinfo=UTC)))
    assert ledger.first_delivery_date("default", "INBOX") == dates[1]
