"""A mailbox is ledger, stream and dead letters: `reconcile` proves it or fills the gap, and queues nothing twice."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from email_ingestion.events import MailboxChanged, Published, Reconciled
from email_ingestion.mailbox.uid_listing import UID_WINDOW
from email_ingestion.reconcile.comparison import MAX_MISSING_UIDS
from email_ingestion.records import Cursor
from email_ingestion.stream import Appender, EntryScanner
from email_ingestion.stream.entry_scan import BEGINNING
from gmail_sandbox import RunningSandbox
from tests.servers.accounting import KEYS, World, digests, gmail, letter, sums
from tests.servers.links import history_uids, link, message
from tests.servers.redis import RedisServer


@pytest.fixture
def sandbox() -> Iterator[RunningSandbox]:
    with gmail() as running:
        yield running


@pytest.fixture
def world(tmp_path: Path, redis_server: RedisServer, sandbox: RunningSandbox) -> World:
    return World(tmp_path, redis_server, sandbox.imap_port)


@pytest.fixture
def filled(world: World, sandbox: RunningSandbox) -> World:
    """Thirty messages, read as they came: ten delivered, ten dead, ten queued."""
    world.sync()
    for number in range(30):
        sandbox.deliver(letter(number))
    world.sync()
    world.work(10)
    world.dead_letter(10)
    return world


def test_every_message_is_accounted_for(filled: World):
    report = filled.reconcile()
    assert sums(report) == (10, 10, 10, 0)
    assert (report.checked, report.complete, report.unfetched) == (30, True, 0)
    assert (report.duplicate, report.unexpected, report.excluded) == (0, 0, 0)


def test_a_ledger_with_far_more_than_the_mailbox_is_read_in_pages(
    filled: World, sandbox: RunningSandbox, monkeypatch: pytest.MonkeyPatch
):
    filled.work()
    filled.sql("UPDATE emails SET uid = uid + 1000 WHERE uid BETWEEN 3 AND 17")  # deleted on the server since
    whole = filled.reconcile()
    assert (whole.delivered, whole.unexpected) == (20, 0)  # found at their new places
    filled.sql("DELETE FROM places")
    monkeypatch.setattr("email_ingestion.producer.known_mail.LEDGER_PAGE", 2)
    assert filled.reconcile() == whole
    filled.sql("UPDATE emails SET gm_msgid = gm_msgid + 1000, email_id = email_id || '0' WHERE uid > 1000")
    assert (filled.reconcile().missing, filled.reconcile().unexpected) == (8, 0)


def test_mail_above_the_cursor_is_no_gap(filled: World, sandbox: RunningSandbox):
    sandbox.deliver(letter(30))
    report = filled.reconcile(repair=True)
    assert (report.checked, report.missing, report.unfetched) == (30, 0, 1)


def test_lost_entries_are_named_and_filled_once(filled: World, redis_server: RedisServer):
    filled.remove_queued(4)
    found = filled.reconcile()
    assert (sums(found), found.complete) == ((10, 10, 6, 4), False)
    assert found.missing_uids == [21, 22, 23, 24]
    assert filled.queued() == 6
    repaired = filled.reconcile(repair=True)
    assert (repaired.missing, repaired.repaired, repaired.complete) == (4, 4, True)
    assert history_uids(redis_server.url) >= {21, 22, 23, 24}
    assert sums(filled.reconcile(repair=True)) == (10, 10, 10, 0)
    assert filled.work() == 0
    assert sums(filled.reconcile()) == (20, 10, 0, 0)


def test_what_an_operator_gave_up_does_not_come_back(filled: World):
    with filled.redis.client() as client:
        entries = client.xrange(KEYS.dlq)
        client.delete(KEYS.dlq)
    assert sums(filled.reconcile()) == (10, 0, 10, 10)
    filled.ledger().record_purged(f"default:gm:{int(fields[b'gm_msgid'])}" for _, fields in entries[:9])
    report = filled.reconcile(repair=True)
    assert (report.purged, report.missing, report.repaired) == (9, 1, 1)
    filled.flush()
    filled.sync()  # reads the mailbox from its beginning
    assert filled.queued() == 11
    filled.work()
    assert (sums(filled.reconcile()), filled.reconcile().purged) == ((21, 0, 0, 0), 9)


def test_what_was_erased_does_not_come_back(filled: World):
    """Whatever brings mail: reconcile, the walk after a flush, a replay; the other mail is as it was."""
    erased = tuple(row[0] for row in filled.sql("SELECT email_id FROM emails ORDER BY email_id LIMIT 5"))
    assert filled.erase(email_ids=erased).matched == 5
    report = filled.reconcile(repair=True)
    assert report.purged == 5
    assert report.repaired == report.missing == 0
    before = sums(report)
    filled.flush()
    filled.sync()
    filled.work()
    assert filled.reconcile(repair=True).complete
    assert filled.work() == 0
    assert len(filled.stored()) == sum(before)
    assert not set(erased) & {row[0] for row in filled.sql("SELECT email_id FROM emails")}


def test_rows_deleted_from_the_ledger_come_back(filled: World):
    filled.sql("DELETE FROM emails WHERE uid <= 3")
    assert filled.reconcile().missing_uids == [1, 2, 3]
    assert filled.reconcile(repair=True).repaired == 3
    assert filled.work() == 0
    assert len(filled.stored()) == 20
    filled.sql("DELETE FROM emails")
    assert filled.reconcile().missing == 20


def test_a_repair_leaves_cursor_and_volume_right(filled: World):
    cursor = Appender(link(filled.redis.url)).cursor("default", "[Gmail]/All Mail")
    filled.sql("DELETE FROM emails WHERE uid <= 10")
    filled.reconcile(repair=True)
    assert Appender(link(filled.redis.url)).cursor("default", "[Gmail]/All Mail") == cursor
    with filled.redis.client() as client:
        entries = client.xrange(KEYS.stream)
    assert filled.volume() == sum(len(part) for _, fields in entries for item in fields.items() for part in item)
    filled.work()
    assert filled.volume() == 0


def test_after_a_flush_only_what_was_not_delivered_is_queued(filled: World, sandbox: RunningSandbox):
    filled.flush()
    lost = filled.reconcile()
    assert (sums(lost), lost.unfetched) == ((10, 0, 0, 20), 0)
    filled.sync()
    assert filled.queued() == 20
    assert filled.work() == 0
    assert filled.stored() == digests(30)
    assert sums(filled.reconcile()) == (30, 0, 0, 0)


def test_a_repair_after_a_flush_and_then_the_producer_queue_nothing_twice(filled: World):
    filled.flush()
    assert filled.reconcile(repair=True).repaired == 20
    filled.sync()
    assert filled.queued() == 20
    assert filled.work() == 0


def test_a_flush_on_a_living_connection_is_noticed(filled: World):
    with filled.redis.client() as client:
        client.delete(KEYS.cursor("default", "[Gmail]/All Mail"))
    with filled._opened() as (source, connection, mailbox):
        new_mail = partial(
            source.new_mail(connection, mailbox).run, lambda _size, _in_flight: 0.0, lambda _seconds: True
        )
        history = source.history(connection, mailbox).steps(lambda _size, _in_flight: 0.0)
        for queued in (10, 20):
            assert new_mail()
            assert any(pause == math.inf for pause in history)
            assert filled.queued() == queued
            filled.flush()


def test_a_new_uidvalidity_queues_nothing_again(filled: World, sandbox: RunningSandbox):
    sandbox.arm_fault("uidvalidity_reset", mailbox="\\All")
    filled.sync()
    assert filled.heard.of(MailboxChanged)
    assert filled.queued() == 10
    assert sums(filled.reconcile(repair=True)) == (10, 10, 10, 0)
    assert filled.work() == 0
    report = filled.reconcile()
    assert (sums(report), report.duplicate, report.unexpected) == ((20, 10, 0, 0), 0, 0)


def test_after_a_new_uidvalidity_places_are_learned_once(filled: World, sandbox: RunningSandbox):
    filled.work()
    sandbox.arm_fault("uidvalidity_reset", mailbox="\\All")
    filled.sync()
    assert filled.sql("SELECT count(*) FROM places") == [(20,)]
    filled.sql("DELETE FROM emails WHERE uid = 1")
    assert filled.reconcile().missing == 1


def test_dead_letters_replayed_meanwhile_are_queued_not_missing(filled: World):
    with filled.redis.client() as client, filled.reconciler() as reconciler:
        in_flight = reconciler._known_mail._in_flight
        look = in_flight._scanner.dead_letter_pages

        def replayed_first():
            for entry, fields in client.xrange(KEYS.dlq):
                client.xadd(KEYS.stream, fields)
                client.xdel(KEYS.dlq, entry)
            return look()

        in_flight._scanner.dead_letter_pages = replayed_first
        assert sums(reconciler.run()) == (10, 0, 20, 0)


def test_mail_left_out_by_label_is_no_gap(world: World, sandbox: RunningSandbox):
    for number, labels in enumerate((["\\Sent"], ["\\Inbox", "\\Draft"], ["\\Inbox"])):
        sandbox.deliver(letter(number), labels)
    world.sync()
    report = world.reconcile(repair=True)
    assert (report.queued, report.excluded, report.missing) == (1, 2, 0)
    assert world.queued() == 1


def test_mail_before_the_start_is_no_gap(tmp_path: Path, redis_server: RedisServer, sandbox: RunningSandbox):
    sandbox.deliver(letter(0), internaldate=1_600_000_000_000)
    sandbox.deliver(letter(1))
    world = World(tmp_path, redis_server, sandbox.imap_port, {"imap_start": "2024-01-01"})
    world.sync()
    report = world.reconcile(repair=True)
    assert (report.queued, report.excluded) == (1, 1)


def test_starting_now_takes_no_old_mail_whatever_gets_lost(
    tmp_path: Path, redis_server: RedisServer, sandbox: RunningSandbox
):
    for number in range(5):
        sandbox.deliver(letter(number), internaldate=1_600_000_000_000)
    world = World(tmp_path, redis_server, sandbox.imap_port, {"imap_start": "now"})
    world.sync()
    assert sums(world.reconcile(repair=True)) == (0, 0, 0, 0)
    for number in range(5, 9):
        sandbox.deliver(letter(number), internaldate=1_700_000_000_000)
    world.sync()
    world.work(1)
    assert sums(world.reconcile(repair=True)) == (1, 0, 3, 0)
    world.flush()
    world.sync()
    assert world.queued() == 3
    sandbox.arm_fault("uidvalidity_reset", mailbox="\\All")
    world.sync()
    report = world.reconcile(repair=True)
    assert (sums(report), report.excluded) == ((1, 0, 3, 0), 5)
    assert world.work() == 0
    assert world.stored() == sorted(hashlib.sha256(letter(number)).hexdigest() for number in range(5, 9))


def test_mail_moved_to_the_trash_is_unexpected_and_back_it_is_not(filled: World, sandbox: RunningSandbox):
    first = sandbox.messages()[0]
    sandbox.arm_fault("trash_and_back", msgid=first.msgid)
    filled.sync()
    assert filled.work() == 1
    back = filled.reconcile()
    assert (back.delivered, back.unexpected, back.duplicate, back.missing) == (20, 0, 0, 0)
    assert filled.reconcile().unexpected == 0
    sandbox.with_account(lambda account: account.delete(first.msgid))
    gone = filled.reconcile(repair=True)
    assert (gone.delivered, gone.unexpected, gone.missing) == (19, 1, 0)


def test_two_repairs_at_once_queue_nothing_twice(filled: World):
    filled.remove_queued(8)
    with filled.reconciler(lambda: True) as first, filled.reconciler(lambda: True) as second:
        steps = [first.steps(), second.steps()]
        first._begin()
        second._begin()
        for step in steps:
            for _ in step:
                pass
    assert filled.queued() == 10
    assert filled.work() == 0


def test_what_another_appended_since_we_looked_is_not_appended_again(redis_server: RedisServer):
    appender, scanner = Appender(link(redis_server.url)), EntryScanner(link(redis_server.url), KEYS)
    messages = [message(uid) for uid in range(1, 31)]
    assert appender.append_missing(messages[:20], BEGINNING) == 20
    assert appender.append_missing(messages, BEGINNING) == 10
    last = [page.last for page in scanner.stream_pages()][-1]
    assert appender.append_missing([message(31)], last) == 1
    assert appender.append_missing([message(31)], last) == 0
    plain = replace(message(40), envelope=replace(message(40).envelope, gm_msgid=None))
    assert (appender.append_missing([plain], last), appender.append_missing([plain], last)) == (1, 0)


def test_a_full_stream_puts_the_repair_off(filled: World):
    filled.remove_queued(5)
    report = filled.reconcile(repair=True, room=lambda: False)
    assert (report.missing, report.repaired, report.complete) == (5, 0, False)
    assert filled.queued() == 5


def test_a_census_carries_identities_and_no_payload(redis_server: RedisServer):
    intake = Appender(link(redis_server.url))
    intake.restart_cursor("default", "INBOX", Cursor(1, 0))
    sent = [message(uid, raw=bytes([uid]) * 100_000) for uid in range(1, 51)]
    intake.append("default", "INBOX", Cursor(1, 0), 50, sent)
    with redis_server.client() as client:
        client.xadd(KEYS.stream, {"hello": "world"})
        before = client.info("stats")["total_net_output_bytes"]
        pages = list(EntryScanner(link(redis_server.url), KEYS).stream_pages())
        assert client.info("stats")["total_net_output_bytes"] - before < 20_000
    found = [entry for page in pages for entry in page.entries]
    assert [entry.email_id for entry in found] == [each.envelope.email_id for each in sent]
    assert [entry.sha256 for entry in found] == [each.envelope.sha256 for each in sent]


def test_a_page_of_large_entries_is_short(redis_server: RedisServer):
    intake = Appender(link(redis_server.url))
    intake.restart_cursor("default", "INBOX", Cursor(1, 0))
    noise = [hashlib.shake_256(bytes([uid])).digest(500_000) for uid in range(1, 26)]
    sent = [message(uid, raw=raw) for uid, raw in enumerate(noise, start=1)]
    for each in sent:
        intake.append("default", "INBOX", Cursor(1, each.envelope.uid - 1), each.envelope.uid, [each])
    pages = [len(page.entries) for page in EntryScanner(link(redis_server.url), KEYS).stream_pages()]
    assert pages == [10, 10, 5]


def test_twenty_thousand_messages_are_compared_in_windows(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
):
    window, stretch = 3000, 200
    monkeypatch.setattr("email_ingestion.reconcile.reconciler.UID_WINDOW", window)
    monkeypatch.setattr("email_ingestion.reconcile.reconciler.MAX_FETCH_UIDS", stretch)
    monkeypatch.setattr("email_ingestion.producer.portion_size.SLOW_SECONDS", math.inf)
    assert window < UID_WINDOW
    with gmail(mail="bulk:20000") as sandbox:
        world = World(tmp_path, redis_server, sandbox.imap_port)
        with world.reconciler() as reconciler:
            largest = {"list_uids": 0, "list_uids_from": 0, "fetch_summaries": 0}

            def measured(name: str, call):
                def measure(*arguments):
                    found = call(*arguments)
                    largest[name] = max(largest[name], len(found))
                    return found

                return measure

            for name in largest:
                setattr(reconciler._connection, name, measured(name, getattr(reconciler._connection, name)))
            report = reconciler.run()
        assert (report.checked, report.missing, len(report.missing_uids)) == (20_000, 20_000, MAX_MISSING_UIDS)
        assert (largest["list_uids"], largest["fetch_summaries"]) == (window, stretch)
        with world.reconciler() as reconciler:
            mailbox = reconciler._mailbox
            Appender(link(redis_server.url)).restart_cursor("default", mailbox.name, Cursor(mailbox.uidvalidity, 0))
            for name in ("list_uids", "list_uids_from"):
                setattr(reconciler._connection, name, measured(name, getattr(reconciler._connection, name)))
            assert reconciler.run().unfetched == 20_000
        assert max(largest.values()) == window
        assert sum(sandbox.with_stats(lambda stats: dict(stats.fetched_messages)).values()) == 0


def test_the_old_state_of_redis_comes_back_and_nothing_is_lost_or_doubled(
    tmp_path: Path, own_redis: RedisServer, sandbox: RunningSandbox
):
    world = World(tmp_path, own_redis, sandbox.imap_port)
    for number in range(10):
        sandbox.deliver(letter(number))
    world.sync()
    world.work(4)
    own_redis.kill()
    shutil.copytree(own_redis.directory, tmp_path / "backup")
    own_redis.start()
    world.work()  # six delivered, which the backup has queued
    for number in range(10, 20):
        sandbox.deliver(letter(number))
    world.sync()
    world.work(3)  # three delivered and seven queued, of which the backup knows nothing
    own_redis.kill()
    own_redis.forget()
    shutil.copytree(tmp_path / "backup", own_redis.directory, dirs_exist_ok=True)
    own_redis.start()
    restored = world.reconcile(repair=True)
    assert (sums(restored), restored.unfetched) == ((10, 0, 0, 0), 10)
    world.sync()
    assert world.work() == 9
    assert world.stored() == digests(20)
    report = world.reconcile()
    assert (sums(report), report.complete) == ((20, 0, 0, 0), True)


def test_a_comparison_announces_what_it_found(filled: World):
    filled.remove_queued(2)
    filled.reconcile(repair=True)
    assert filled.heard.of(Reconciled) == [Reconciled("default", 2, 0, 0, "[Gmail]/All Mail")]
    assert filled.heard.of(Published)[-1].count == 2
