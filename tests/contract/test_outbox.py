"""What further sinks are owed: claimed by one at a time, marked for good, never forgotten."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from email_ingestion.ledger import outbox
from email_ingestion.ledger.engine import database_now
from email_ingestion.ledger.outbox import LONGEST_WAIT, DeliveryClaim
from email_ingestion.ledger.store import Ledger
from email_ingestion.ledger.tables import deliveries
from tests.contract.ledgers import letters, mail, stored
from tests.servers.processes import until

LEASE = 60.0
NOW = 0.0


def record(
    ledger: Ledger, *numbers: int, owed_to: tuple[str, ...] = ("a", "b"), only_sink: str | None = None
) -> set[str]:
    return ledger.record([replace(letter, owed_to=owed_to, only_sink=only_sink) for letter in letters(*numbers)])


def claim(
    ledger: Ledger, sink: str = "a", *, holder: str = "one", limit: int = 10, lease: float = LEASE
) -> DeliveryClaim:
    return ledger.outbox.claim(sink, holder, limit, lease)


def ids(claimed: DeliveryClaim) -> list[str]:
    return [owed.envelope.email_id for owed in claimed.deliveries]


def test_a_new_message_is_owed_to_each_of_its_sinks(ledger: Ledger) -> None:
    record(ledger, 1, 2)
    for sink in ("a", "b"):
        assert ids(claim(ledger, sink)) == ["default:gm:1", "default:gm:2"]
    assert ids(claim(ledger, "c")) == []


def test_a_claim_has_the_whole_envelope(ledger: Ledger) -> None:
    email = mail(1, gm_msgid=2**63 + 5)
    email = replace(email, envelope=replace(email.envelope, flags=("\\Seen",)))
    ledger.record([replace(stored(email), owed_to=("a",))])
    (owed,) = claim(ledger).deliveries
    assert (owed.envelope, owed.raw_ref, owed.attempt) == (email.envelope, stored(email).raw_ref, 1)


def test_a_redelivered_message_is_owed_to_nobody_again(ledger: Ledger) -> None:
    record(ledger, 1)
    first = claim(ledger)
    ledger.outbox.mark_delivered(first, ids(first))
    record(ledger, 1)
    assert ids(claim(ledger)) == []
    assert ledger.outbox.backlog("b").waiting == 1


def test_what_one_worker_holds_no_other_one_gets(ledger: Ledger) -> None:
    record(ledger, 1, 2, 3)
    assert len(claim(ledger, limit=2).deliveries) == 2
    assert len(claim(ledger, holder="two").deliveries) == 1
    assert claim(ledger, holder="three").deliveries == ()


def test_what_a_dead_worker_held_comes_back_alone_and_has_spent_an_attempt(ledger: Ledger) -> None:
    record(ledger, 1, 2, 3)
    claim(ledger, limit=2, lease=NOW)
    seen = [claim(ledger, holder="two") for _ in range(3)]
    assert sorted(len(each.deliveries) for each in seen) == [1, 1, 1]
    assert sorted((each.abandoned, each.deliveries[0].attempt) for each in seen) == [(False, 1), (True, 2), (True, 2)]


def test_a_restarted_worker_need_not_wait_for_its_own_lease(ledger: Ledger) -> None:
    record(ledger, 1, 2)
    claim(ledger)
    assert ledger.outbox.recover("a", "two") == 0
    assert ledger.outbox.recover("a", "one") == 2
    assert claim(ledger).abandoned


def test_what_is_given_back_has_spent_no_attempt(ledger: Ledger) -> None:
    record(ledger, 1, 2)
    for _ in range(10):
        claimed = claim(ledger)
        assert [owed.attempt for owed in claimed.deliveries] == [1, 1]
        ledger.outbox.release(claimed, ids(claimed))


def test_what_is_deferred_waits(ledger: Ledger) -> None:
    record(ledger, 1, 2)
    first = claim(ledger)
    ledger.outbox.defer(first, {"default:gm:1": 3600.0, "default:gm:2": NOW})
    again = claim(ledger)
    assert (ids(again), again.deliveries[0].attempt, again.abandoned) == (["default:gm:2"], 2, False)


def test_a_late_worker_cannot_change_what_another_one_has_taken_over(ledger: Ledger) -> None:
    record(ledger, 1)
    late = claim(ledger, lease=NOW)
    claim(ledger, holder="two")
    ledger.outbox.release(late, ids(late))
    ledger.outbox.defer(late, {"default:gm:1": NOW})
    assert ids(claim(ledger)) == []


def test_what_a_late_worker_did_deliver_is_not_delivered_again(ledger: Ledger) -> None:
    record(ledger, 1)
    late = claim(ledger, lease=NOW)
    other = claim(ledger, holder="two")
    ledger.outbox.mark_delivered(late, ids(late))
    ledger.outbox.release(other, ids(other))
    assert ids(claim(ledger)) == []
    assert ledger.outbox.backlog("a").waiting == 0


def test_a_prolonged_claim_holds_with_its_new_end(ledger: Ledger) -> None:
    record(ledger, 1)
    claimed = claim(ledger, lease=NOW)
    longer, lost = ledger.outbox.extend(claimed, ids(claimed), LEASE)
    assert lost == frozenset()
    assert claim(ledger, holder="two").deliveries == ()
    ledger.outbox.release(longer, ids(longer))
    assert claim(ledger, holder="two").deliveries[0].attempt == 1


@pytest.mark.parametrize("state", ["waiting", "delivered"])
def test_a_replay_repeats_nothing_that_is_delivered_or_on_its_way(ledger: Ledger, state: str) -> None:
    record(ledger, 1)
    if state == "delivered":
        first = claim(ledger)
        ledger.outbox.mark_delivered(first, ids(first))
    record(ledger, 1, only_sink="a")
    assert ledger.outbox.backlog("a").waiting == (state == "waiting")
    assert ledger.outbox.backlog("b").waiting == 1


def test_a_replayed_dead_letter_is_owed_to_its_sink_once_more(ledger: Ledger) -> None:
    record(ledger, 1)
    first = claim(ledger)
    ledger.outbox.mark_dead(first, ids(first))
    assert ids(claim(ledger)) == []
    record(ledger, 1, only_sink="a")
    (owed,) = claim(ledger).deliveries
    assert owed.attempt == 1


def test_what_was_started_tells_who_has_it_where_and_what_waits_for_another_attempt(ledger: Ledger) -> None:
    record(ledger, 1, 2, 3)
    first = claim(ledger, limit=1, holder="one")
    second = claim(ledger, "b", limit=1, holder="two")
    ledger.outbox.defer(second, dict.fromkeys(ids(second), 600.0))
    released = claim(ledger, "b", limit=1)
    ledger.outbox.release(released, ids(released))
    found = {(each.email_id, each.sink, each.holder, each.attempts) for each in ledger.outbox.started()}
    assert found == {(ids(first)[0], "a", "one", 1), (ids(second)[0], "b", None, 1)}
    assert len(ledger.outbox.started(limit=1)) == 1
    assert [each.sink for each in ledger.outbox.started(ids(first)[0])] == [
        each.sink for each in ledger.outbox.started() if each.email_id == ids(first)[0]
    ]
    pending = ledger.outbox.pending("a", ids(first)[0])
    assert pending
    assert (pending.envelope, pending.attempt) == (first.deliveries[0].envelope, 1)
    ledger.outbox.mark_delivered(first, ids(first))
    assert ledger.outbox.pending("a", ids(first)[0]) is None


def test_what_the_sink_took_after_all_is_not_dead(ledger: Ledger) -> None:
    record(ledger, 1)
    claimed = claim(ledger)
    ledger.outbox.mark_delivered(claimed, ids(claimed))
    ledger.outbox.mark_dead(claimed, ids(claimed))
    record(ledger, 1, only_sink="a")
    assert ids(claim(ledger)) == []


def test_the_backlog_tells_how_many_wait_and_since_when(ledger: Ledger) -> None:
    assert ledger.outbox.backlog("a").oldest is None
    record(ledger, 1, 2)
    backlog = ledger.outbox.backlog("a")
    assert backlog.waiting == 2
    assert backlog.oldest is not None


def test_an_extension_tells_what_another_worker_has_taken_over(ledger: Ledger) -> None:
    record(ledger, 1)
    late = claim(ledger, lease=NOW)
    assert not ledger.outbox.is_held(late, ids(late))  # another one may take it at any moment
    other = claim(ledger, holder="two")
    assert ledger.outbox.is_held(other, ids(other))
    assert ledger.outbox.extend(late, ids(late), LEASE)[1] == {"default:gm:1"}
    assert not ledger.outbox.is_held(late, ids(late))
    assert ledger.outbox.is_held(other, ids(other))


def test_a_delivery_in_an_impossible_future_is_due_now(ledger: Ledger) -> None:
    record(ledger, 1)
    ledger.outbox.defer(claim(ledger), {"default:gm:1": 10 * LONGEST_WAIT})
    assert ledger.outbox.mend_due_times("a", LEASE) == 0  # at most the longest wait, which may be meant
    day = datetime.now(UTC) + timedelta(days=1)
    with ledger._database.begin() as connection:
        connection.execute(update(deliveries).values(due=day))
    assert ledger.outbox.mend_due_times("a", LEASE) == 1
    assert ids(claim(ledger)) == ["default:gm:1"]


def test_what_the_clock_put_off_by_going_back_is_due_now(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = timedelta(hours=2)
    monkeypatch.setattr(outbox, "database_now", lambda connection: database_now(connection) + ahead)
    record(ledger, 1, 2)
    claimed = claim(ledger)
    ledger.outbox.defer(claimed, {"default:gm:1": 1})
    assert ledger.outbox.mend_due_times("a", LEASE) == 0
    ahead = timedelta(0)
    assert ledger.outbox.mend_due_times("a", LEASE) == 1  # not what a worker has: it extends its lease itself
    assert ids(claim(ledger)) == ["default:gm:1"]
    assert ledger.outbox.extend(claimed, ["default:gm:2"], LEASE)[1] == frozenset()


def test_a_lease_that_the_clock_made_too_long_ends(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    record(ledger, 1)
    with monkeypatch.context() as patched:
        patched.setattr(outbox, "database_now", lambda connection: database_now(connection) + timedelta(days=1))
        claim(ledger)
    lease = 0.2
    until(lambda: ledger.outbox.mend_due_times("a", lease) == 1, "nobody has extended it for a lease")
    assert ids(claim(ledger, holder="two")) == ["default:gm:1"]
