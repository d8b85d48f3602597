"""What a sink is owed again: found by choice and by routes, behind everything else, each message once for a resend."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from email_ingestion.blobs import DiskBlobStore
from email_ingestion.ledger.outbox import DeliveryClaim
from email_ingestion.ledger.resends import ResendChoice
from email_ingestion.ledger.search_filter import SearchFilter
from email_ingestion.ledger.store import Ledger
from email_ingestion.resend import Resender, ResendSummary
from email_ingestion.routing import Router
from tests.contract.ledgers import EPOCH, letters

SINKS = ("a", "b")
EVERYTHING = ResendChoice()
ODD = [{"subject": "*1", "sinks": ["a"]}]  # letters 1, 11, …: nowhere but to a


class Mail:
    """A ledger whose messages went to the sink a, and a way to send them again."""

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self.ledger = ledger
        self.blobs = DiskBlobStore(folder)

    def deliver(self, *numbers: int, sinks: tuple[str, ...] = ("a",)) -> None:
        self.ledger.record([replace(letter, owed_to=sinks) for letter in letters(*numbers)])
        for sink in sinks:
            while (claim := self.claim(sink)).deliveries:
                self.ledger.outbox.mark_delivered(claim, ids(claim))

    def claim(self, sink: str = "a", limit: int = 10) -> DeliveryClaim:
        return self.ledger.outbox.claim(sink, "one", limit, 60)

    def resend(
        self, sink: str = "a", choice: ResendChoice = EVERYTHING, *, routes: list[dict[str, object]] | None = None,
        before: float = 0.0, dry_run: bool = False,
    ) -> ResendSummary:  # fmt: skip
        begun = self.ledger.resends.now() - timedelta(seconds=before)
        made = Resender(self.ledger, self.blobs, Router(routes or [], SINKS), sink, begun)
        for _ in made.run(choice, dry_run=dry_run):
            pass
        return made.summary


@pytest.fixture
def mail(ledger: Ledger, tmp_path: Path) -> Mail:
    return Mail(ledger, tmp_path / "blobs")


def ids(claimed: DeliveryClaim) -> list[str]:
    return [owed.envelope.email_id for owed in claimed.deliveries]


def test_what_a_sink_had_goes_to_it_again_as_a_first_attempt(mail: Mail):
    mail.deliver(1, 2, 3)
    summary = mail.resend()
    assert (summary.repeated, summary.new) == (3, 0)
    claim = mail.claim()
    assert ids(claim) == [f"default:gm:{number}" for number in (1, 2, 3)]
    assert {owed.attempt for owed in claim.deliveries} == {1}
    mail.ledger.outbox.mark_delivered(claim, ids(claim))
    assert mail.claim().deliveries == ()


def test_a_sink_that_was_added_later_gets_what_the_routes_send_to_it(mail: Mail):
    mail.deliver(1, 2, 3, 11)
    tried = mail.resend("b", routes=ODD, dry_run=True)
    assert mail.ledger.resends.left("b") == 0
    done = mail.resend("b", routes=ODD)
    assert tried == done
    assert (done.repeated, done.new, done.not_routed) == (0, 2, 2)
    assert ids(mail.claim("b")) == ["default:gm:2", "default:gm:3"]


def test_a_message_that_is_named_goes_whatever_the_routes_say(mail: Mail):
    mail.deliver(1, 2)
    assert mail.resend("b", ResendChoice(email_ids=("default:gm:1",)), routes=ODD).new == 1
    assert ids(mail.claim("b")) == ["default:gm:1"]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (ResendChoice(SearchFilter(after=EPOCH + timedelta(hours=3))), (3, 4)),
        (ResendChoice(SearchFilter(before=EPOCH + timedelta(hours=3))), (1, 2)),
        (ResendChoice(SearchFilter(account="other")), ()),
        (ResendChoice(words="letter hello"), (1, 2, 3, 4)),
        (ResendChoice(words="-hello"), ()),
        (ResendChoice(words="nowhere"), ()),
    ],
)
def test_a_choice_is_kept_to(mail: Mail, choice: ResendChoice, expected: tuple[int, ...]):
    mail.deliver(1, 2, 3, 4)
    assert mail.resend(choice=choice).owed == len(expected)
    assert ids(mail.claim()) == [f"default:gm:{number}" for number in expected]


def test_live_mail_goes_first_and_does_not_look_late(mail: Mail):
    mail.deliver(*range(1, 8))
    mail.resend()
    assert ids(mail.claim(limit=2)) == ["default:gm:1", "default:gm:2"]
    mail.ledger.record([replace(letter, owed_to=("a",)) for letter in letters(100)])
    assert ids(mail.claim(limit=2)) == ["default:gm:100"]
    backlog = mail.ledger.outbox.backlog("a")
    assert (backlog.waiting, backlog.resends) == (3, 5)  # what is claimed waits as well


def test_waiting_ones_and_dead_letters_are_left_as_they_are(mail: Mail):
    mail.ledger.record([replace(letter, owed_to=("a",)) for letter in letters(1, 2)])
    claim = mail.claim(limit=1)
    mail.ledger.outbox.mark_dead(claim, ids(claim))
    summary = mail.resend()
    assert (summary.owed, summary.waiting, summary.dead_letters) == (0, 1, 1)


def test_given_again_after_a_kill_it_owes_nothing_twice(mail: Mail):
    mail.deliver(1, 2, 3)
    begun = mail.ledger.resends.now()
    router = Router([], SINKS)
    steps = Resender(mail.ledger, mail.blobs, router, "a", begun).run(ResendChoice(email_ids=("default:gm:1",)))
    next(steps)  # killed here; a worker goes on
    claim = mail.claim()
    mail.ledger.outbox.mark_delivered(claim, ids(claim))
    again = Resender(mail.ledger, mail.blobs, router, "a", begun)
    for _ in again.run(EVERYTHING):
        pass
    assert (again.summary.repeated, again.summary.delivered_since) == (2, 1)
    assert ids(mail.claim()) == ["default:gm:2", "default:gm:3"]


def test_taken_back_everything_is_as_it_was(mail: Mail):
    mail.deliver(1, 2)
    mail.resend("a")
    mail.resend("b")
    assert (mail.ledger.resends.cancel("a"), mail.ledger.resends.cancel("b")) == (2, 2)
    assert mail.claim("a").deliveries == mail.claim("b").deliveries == ()
    assert mail.resend("b").new == 2  # no trace of the first resend
    assert mail.resend("a").repeated == 2


def test_a_message_without_its_raw_bytes_is_named_where_the_routes_need_them(mail: Mail):
    mail.blobs.put(b"another content: an empty store counts as one that is away")
    email = letters(1)[0]
    mail.ledger.record([replace(email, contents=())])
    mail.deliver(2)
    summary = mail.resend("b", routes=ODD)
    assert list(summary.failed) == ["default:gm:1"]
    assert summary.new == 1


def test_many_are_found_part_by_part(mail: Mail, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("email_ingestion.resend.resender.PART_MESSAGES", 3)
    mail.deliver(*range(1, 12))
    assert mail.resend().repeated == 11
    assert mail.ledger.resends.left("a") == 11
