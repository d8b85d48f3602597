"""Each reader of the change feed sees every change once, in the order of the commits, on both databases."""

from __future__ import annotations

import json
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from bench.change_feed import soak
from email_ingestion.ledger import change_feed as changes_module
from email_ingestion.ledger import told_changes
from email_ingestion.ledger.change_feed import ChangesGone
from email_ingestion.ledger.copy import copy_ledger, merge_copy
from email_ingestion.ledger.database_copy import DatabaseCopy
from email_ingestion.ledger.engine import database_now, write_engine
from email_ingestion.ledger.erasure import MailChoice
from email_ingestion.ledger.migrate import upgrade
from email_ingestion.ledger.model import Location, Marks, StoredEmail
from email_ingestion.ledger.store import Ledger, open_engine, open_ledger
from email_ingestion.ledger.told_changes import HeldChange
from email_ingestion.records import ChangeKind
from tests.contract.ledgers import letters, mail, stored
from tests.servers.processes import until

GIVE_UP = 120.0


def told(ledger: Ledger, after: int = 0) -> list[tuple[str, str]]:
    """The kinds and identities of all changes behind a number."""
    ledger.changes.number()
    return [(each.kind.value, each.email_id) for each in ledger.changes.read(after).changes]


def details(ledger: Ledger) -> list[object]:
    ledger.changes.number()
    return [each.details for each in ledger.changes.read(0).changes]


def execute(url: str, *statements: str) -> None:
    engine = write_engine(create_engine(url))
    with engine.begin() as connection:
        for each in statements:
            connection.execute(text(each))
    engine.dispose()


def one(number: int) -> str:
    return mail(number).email_id


def test_a_message_is_born_once_however_often_it_comes(ledger: Ledger):
    ledger.record(letters(2, 1))
    ledger.record(letters(1, 2, 3))
    ledger.record_and_roll_back(letters(4))
    assert told(ledger) == [("born", one(1)), ("born", one(2)), ("born", one(3))]
    page = ledger.changes.read(0)
    assert [each.seq for each in page.changes] == sorted({each.seq for each in page.changes})
    assert page.next_seq == page.changes[-1].seq == ledger.changes.last()
    assert all(each.account == "default" and each.details is None for each in page.changes)
    assert datetime.now(UTC) - page.changes[0].at < timedelta(minutes=5)


def test_labels_and_flags_are_told_with_what_came_and_went(ledger: Ledger):
    ledger.record(letters(1, 2))
    state = ledger.server_state
    state.update_marks("INBOX", {one(1): Marks(("Grüße", "Work"), ("\\Seen", "\\Recent"))})
    state.update_marks("INBOX", {one(1): Marks(("Work", "Grüße"), ("\\Recent", "\\Seen"))})  # the same, otherwise
    state.update_marks("INBOX", {one(1): Marks(None, ("\\Seen", "\\Deleted")), one(2): Marks(("\\Trash",))})
    assert told(ledger)[2:] == [
        ("relabelled", one(1)),
        ("flagged", one(1)),
        ("trashed", one(1)),
        ("trashed", one(2)),
    ]
    assert details(ledger)[2:] == [
        {"labels": ["Grüße", "Work"], "added": ["Work"], "removed": ["\\Inbox"]},
        {"flags": ["\\Seen"], "added": ["\\Seen"], "removed": []},
        {"flags": ["\\Seen", "\\Deleted"], "added": ["\\Deleted"], "removed": []},
        {"labels": ["\\Trash"], "added": ["\\Trash"], "removed": ["Grüße", "\\Inbox"]},
    ]
    facts = ledger.stored_facts(one(1))
    assert facts
    assert facts.envelope.flags == ("\\Seen", "\\Deleted")
    assert facts.envelope.labels == ("Work", "Grüße")


def test_what_is_gone_from_the_server_is_told_once_and_so_is_its_return(ledger: Ledger):
    ledger.record(letters(1, 2, 3))
    state = ledger.server_state
    place = ("default", "INBOX", 7)
    ledger.record_locations("default", {Location("INBOX", 7, 12): one(2), Location("Archive", 9, 1): one(3)})
    assert state.not_noted(*place, {1, 2, 12, 99}) == {1: one(1), 2: one(2), 12: one(2)}
    assert state.places([one(2), one(3)]) == {
        one(2): {Location("INBOX", 7, 2), Location("INBOX", 7, 12)},
        one(3): {Location("INBOX", 7, 3), Location("Archive", 9, 1)},
    }
    assert state.note_deleted("INBOX", [one(1), one(2)]) == 2
    assert state.note_deleted("INBOX", [one(1)]) == 0
    assert state.not_noted(*place, {1, 2, 3, 12}) == {3: one(3)}
    assert state.listed_again(*place, {1, 3}, (1, 9)) == {one(1)}
    assert state.note_restored("INBOX", [one(1), one(3)]) == 1
    ledger.record_locations("default", {Location("INBOX", 7, 13): one(2)})
    assert told(ledger)[3:] == [
        ("deleted", one(1)),
        ("deleted", one(2)),
        ("restored", one(1)),
        ("restored", one(2)),
    ]
    assert details(ledger)[-1] == {"mailbox": "INBOX"}


def test_a_record_that_is_made_anew_is_told_and_one_that_stays_the_same_is_not(ledger: Ledger):
    ledger.record(letters(1, 2))
    ledger.records.replace(letters(1, 9), set(), {one(2)})
    assert told(ledger)[2:] == [("reparsed", one(1))]


def test_of_what_was_erased_the_changes_hold_nothing_but_the_identity(ledger: Ledger, database_url: str):
    ledger.record(letters(1, 2))
    ledger.server_state.update_marks("INBOX", {one(1): Marks(("Ann Example",)), one(2): Marks(("Kept",))})
    ledger.changes.number()
    ledger.server_state.update_marks("INBOX", {one(1): Marks(("Ann Example", "Divorce"))})  # not numbered yet
    erased = list(ledger.erasure.find(MailChoice(email_ids=(one(1), "nobody"))))
    assert ledger.erasure.erase(erased, ["a hash"]).messages == 1
    assert ledger.erasure.erase(erased, ["a hash"]).messages == 0
    assert told(ledger)[-1] == ("erased", one(1))
    assert [kind for kind, email_id in told(ledger) if email_id == one(1)] == ["born", *["relabelled"] * 2, "erased"]
    page = ledger.changes.read(0)
    assert [each.details for each in page.changes if each.email_id == one(1)] == [None] * 4
    kept = [each.details for each in page.changes if each.email_id == one(2) and each.details]
    assert kept == [{"labels": ["Kept"], "added": ["Kept"], "removed": ["Grüße", "\\Inbox"]}]
    assert "Divorce" not in json.dumps([each.details for each in page.changes])


def test_a_reader_of_one_account_comes_on_where_others_have_all_the_mail(ledger: Ledger, monkeypatch):
    ledger.record([stored(mail(1)), *(stored(mail(number, account="other")) for number in range(2, 8))])
    end = ledger.changes.last()
    page = ledger.changes.read(0, accounts=["default"])
    assert [each.email_id for each in page.changes] == [one(1)]
    assert page.next_seq == end
    assert ledger.changes.read(end, accounts=["default"]).next_seq == end
    assert ledger.changes.read(0, accounts=[]).changes == ()
    assert ledger.changes.read(0, 1, accounts=["default"]).next_seq == 1
    monkeypatch.setattr(changes_module, "SCANNED", 3)  # numbers that one answer looks at
    page = ledger.changes.read(1, accounts=["default"])
    assert (page.changes, page.next_seq) == ((), 4)


def test_pages_lead_to_the_end(ledger: Ledger):
    ledger.record(letters(*range(25)))
    ledger.changes.number()
    seen: list[int] = []
    after = 0
    while (page := ledger.changes.read(after, 10)).changes:
        seen += [each.seq for each in page.changes]
        after = page.next_seq
    assert seen == list(range(1, 26))


def test_who_is_too_far_behind_is_told_where_to_start_again(ledger: Ledger):
    ledger.record(letters(1, 2, 3))
    ledger.changes.number()
    later = datetime.now(UTC) + timedelta(seconds=1)
    assert ledger.changes.remove_before(datetime.now(UTC) - timedelta(days=1)) == 0
    assert ledger.changes.remove_before(later) == 3
    assert ledger.changes.count() == 0
    ledger.record(letters(4))
    assert told(ledger, 3) == [("born", one(4))]  # no number is given out twice
    with pytest.raises(ChangesGone, match=r"after 2 are not kept any more; .* the changes after 4") as caught:
        ledger.changes.read(2)
    assert caught.value.start_from == 4
    with pytest.raises(ChangesGone, match="has not come to 5"):
        ledger.changes.read(5)


def test_only_the_oldest_changes_are_removed(ledger: Ledger, database_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(changes_module, "NUMBERED", 2)
    ledger.record(letters(1, 2, 3, 4, 5))
    assert ledger.changes.last() == 5
    ledger.record(letters(6))
    ledger.changes.number()
    execute(database_url, "UPDATE changes SET at = '2026-01-01T00:00:00+00:00' WHERE seq <= 5")
    assert ledger.changes.remove_before(datetime(2026, 2, 1, tzinfo=UTC)) == 5
    assert told(ledger, 5) == [("born", one(6))]


def test_after_a_restore_every_reader_starts_again_and_no_number_comes_twice(
    ledger: Ledger, database_url: str, tmp_path: Path
):
    ledger.record(letters(1, 2))
    ledger.changes.number()
    copied = copy_ledger(database_url, tmp_path / "copy", lambda _done, _total: None)
    assert copied
    ledger.record(letters(3))
    position = ledger.changes.last()  # of a reader that saw all three
    assert merge_copy(database_url, tmp_path / "copy", copied) == 0
    assert ledger.changes.read(position).next_seq == position  # nothing had been lost, and nobody starts again
    execute(database_url, *(f"DELETE FROM {table}" for table in ("emails", "changes", "change_feed")))
    assert merge_copy(database_url, tmp_path / "copy", copied) == 2
    with pytest.raises(ChangesGone) as caught:
        ledger.changes.read(position)
    assert position < caught.value.start_from < 2**53
    ledger.record(letters(4))
    assert told(ledger, caught.value.start_from) == [("born", one(4))]


@pytest.mark.parametrize("source", ["sqlite", "postgresql"])
def test_a_reader_goes_on_where_it_was_when_the_database_was_copied(source: str, sqlite_url: str, postgres_url: str):
    here, there = (sqlite_url, postgres_url) if source == "sqlite" else (postgres_url, sqlite_url)
    with closing(open_ledger(here)) as ledger:
        ledger.record(letters(1, 2))
        ledger.changes.number()
        position = ledger.changes.read(0, 1).next_seq
        ledger.server_state.update_marks("INBOX", {one(1): Marks(("Work",))})
        with closing(DatabaseCopy(here, there)) as copy:
            copy.run(lambda _: None)
            assert copy.run(lambda _: None).same
    with closing(open_ledger(there)) as ledger:
        ledger.record(letters(3))
        assert told(ledger, position) == [("born", one(2)), ("relabelled", one(1)), ("born", one(3))]


def test_a_database_of_before_has_a_feed_that_begins_with_the_upgrade(database_url: str):
    engine = write_engine(open_engine(database_url))
    with engine.begin() as connection:
        upgrade(connection, target="0011")
    engine.dispose()
    with closing(open_ledger(database_url)) as ledger:
        assert ledger.changes.read(0).next_seq == ledger.changes.last() == 0
        ledger.record(letters(1))
        assert told(ledger) == [("born", one(1))]


def test_sqlite_takes_the_number_under_the_lock_of_the_one_writer(sqlite_url: str):
    """A second transaction cannot take a number before the first one is committed or gone."""
    engine = write_engine(open_engine(sqlite_url))
    with closing(open_ledger(sqlite_url)) as ledger:
        ledger.record(letters(1))
        done = threading.Event()

        def record() -> None:
            ledger.record(letters(2))
            done.set()

        with engine.connect() as connection:
            transaction = connection.begin()  # BEGIN IMMEDIATE
            thread = threading.Thread(target=record)
            thread.start()
            assert not done.wait(0.3)
            assert told(ledger) == [("born", one(1))]
            transaction.rollback()
        thread.join()
        assert [each.seq for each in ledger.changes.read(0).changes] == [1, 2]
    engine.dispose()


def test_a_lower_number_that_commits_later_is_not_skipped_and_a_frozen_writer_stops_nobody(postgres_url: str):
    """The trap: a transaction that noted first commits last. It has no number until then."""
    engine = open_engine(postgres_url)
    with closing(open_ledger(postgres_url)) as ledger, engine.connect() as slow:
        transaction = slow.begin()
        noted = [changes_module.Change("default", "slow")]
        changes_module.note_changes(slow, ChangeKind.BORN, noted)  # its arrival has the lowest number
        ledger.record(letters(1))  # does not wait
        assert told(ledger) == [("born", one(1))]
        position = ledger.changes.last()
        transaction.commit()
        assert told(ledger, position) == [("born", "slow")]
    engine.dispose()


def test_one_numbers_while_the_others_go_on_and_a_frozen_one_is_ended(postgres_url: str, monkeypatch):
    monkeypatch.setattr(changes_module, "NUMBERING_SECONDS", 1)
    engine = open_engine(postgres_url)
    with closing(open_ledger(postgres_url)) as ledger, engine.connect() as frozen:
        ledger.record(letters(1))
        ledger.changes.number()
        ledger.record(letters(2))
        transaction = frozen.begin()
        frozen.execute(text("SELECT set_config('idle_in_transaction_session_timeout', '1000', true)"))
        frozen.execute(text("SELECT last_seq FROM change_feed FOR UPDATE"))
        ledger.record(letters(3))  # mail does not wait for the feed
        assert ledger.changes.number() == 0
        end = time.monotonic() + GIVE_UP
        while not ledger.changes.number():
            assert time.monotonic() < end
            time.sleep(0.05)
        assert told(ledger)[1:] == [("born", one(2)), ("born", one(3))]
        with pytest.raises(Exception, match=r"idle-in-transaction|closed|terminat"):
            frozen.execute(text("SELECT 1"))
        transaction.close()
    engine.dispose()


def test_a_reader_beside_eight_killed_writers_sees_every_change_once_and_in_order(database_url: str):
    """In the small; `python -m bench.change_feed` does it with a million."""
    seen = soak(database_url, changes=2_000, kill_every=0.1, kills=8, batch=20)
    assert seen.perfect, seen
    assert seen.kills >= 8
    assert seen.changes >= 2_000
    assert seen.relabelled


def test_one_process_tells_a_sink_and_what_it_took_is_noted_with_how_far(ledger: Ledger):
    ledger.record([StoredEmail(each.email, each.raw_ref, each.contents, ("box",)) for each in letters(1, 2)])
    book = ledger.told_changes
    claim = book.claim("box", "one", 60.0)
    assert claim
    assert claim.last_seq == 2  # what was before is not told
    assert book.claim("box", "two", 60.0) is None
    again = book.claim("box", "one", 60.0)  # a new life of the same process
    assert again
    assert not book.is_held(claim)
    assert book.extend(claim, 60.0) is None
    ledger.server_state.update_marks("INBOX", {one(1): Marks(("a",)), one(2): Marks(("b",))})
    ledger.changes.number()
    assert book.backlog("box", ["relabelled"]).waiting == 2
    assert book.backlog("box", ["flagged"]).waiting == 0
    assert book.delivery_states("box", [one(1), one(2), "nobody"]) == {one(1): "waiting", one(2): "waiting"}
    held = [HeldChange(3, one(1), 1, 0.0), HeldChange(4, one(2), 2, None, "400")]
    assert book.settle(claim, 4, held, []) is None
    moved = book.settle(again, 4, held, [])
    assert moved
    assert book.is_held(moved)
    count = book.backlog("box", ["relabelled"])
    assert (count.waiting, count.refused) == (1, 1)
    assert book.waiting_messages("box", [one(1), one(2)]) == {one(1)}
    ((due,),) = book.due("box", 10)
    assert (due.event.seq, due.event.kind, due.attempts) == (3, ChangeKind.RELABELLED, 1)
    assert due.event.details == {"labels": ["a"], "added": ["a"], "removed": ["Grüße", "\\Inbox"]}
    assert book.settle(moved, 4, [], [due.event])
    assert book.due("box", 10) == []
    assert [(each.seq, reason) for each, reason in book.refused("box")] == [(4, "400")]
    assert book.try_again("box") == 1
    assert [each.event.seq for (each,) in book.due("box", 10)] == [4]
    book.release(moved)
    taken = book.claim("box", "two", 60.0)
    assert taken
    assert taken.last_seq == 4
    assert ledger.changes.remove_before(datetime.now(UTC) + timedelta(seconds=1)) == 4
    assert book.due("box", 10) == []
    assert book.start_again(taken, 9)
    assert book.start_again(moved, 10) is None


def test_a_clock_that_was_ahead_puts_no_change_off_and_keeps_no_sink_claimed(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker that told the sink was killed before its clock was right again."""
    book = ledger.told_changes
    ledger.record(letters(1))
    ledger.changes.number_all()
    with monkeypatch.context() as patched:
        patched.setattr(told_changes, "database_now", lambda connection: database_now(connection) + timedelta(days=1))
        claim = book.claim("a", "killed", 60.0)
        assert claim
        (change,) = ledger.changes.read(0).changes
        assert book.settle(claim, change.seq, [HeldChange(change.seq, change.email_id, 1, 1.0)], ())
    assert [each.event.seq for (each,) in book.due("a", 10)] == [change.seq]
    lease = 0.2
    assert book.claim("a", "another", lease) is None  # its holder has the time to extend it
    until(lambda: book.claim("a", "another", lease), "nobody has extended it for a lease")
