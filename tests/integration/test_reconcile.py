"""A mailbox is ledger, stream and dead letters: `reconcile` proves it or fills the gap, and queues nothing twice."""

from __future__ import annotations

import hashlib
import math
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import imapclient
import pytest

from email_ingestion.blobs import open_blobs, reference
from email_ingestion.email import Cursor
from email_ingestion.events import MailboxChanged, Published, Reconciled, Skipped
from email_ingestion.ledger import Ledger, Place, StoredEmail, open_ledger
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.mailbox.imap import LIST_WINDOW, Opened
from email_ingestion.parsing import parse
from email_ingestion.reconcile import Audit, Report
from email_ingestion.reconcile.report import NAMED_MOST
from email_ingestion.sandbox import Credentials, RunningSandbox, SandboxSettings, running_sandbox
from email_ingestion.settings import Settings
from email_ingestion.sinks import Parcel
from email_ingestion.sinks.database import DatabaseSink
from email_ingestion.stream import Census, Gaps, Intake, Keys, Queue
from email_ingestion.stream.census import BEGINNING
from email_ingestion.wiring.accounts import log_in
from email_ingestion.wiring.source import LedgerOnDemand, Source
from tests.servers.dovecot import PASSWORD, USER, DovecotServer, running_dovecot
from tests.servers.links import Heard, link, message
from tests.servers.postgres import fresh_schema, running_postgres
from tests.servers.redis import RedisServer

KEYS = Keys()


def _pass(source: Source, connection: ImapMailbox, opened: Opened) -> None:
    """New mail, then what was there before."""
    assert source.sync(connection, opened, lambda _size: True).run()
    history = source.history(connection, opened, lambda _size: 0.0).steps()
    while next(history) < math.inf:
        pass


@dataclass
class World:
    """A mail server, a Redis and a ledger, and the steps that producer, worker and reconcile do between them."""

    folder: Path
    redis: RedisServer
    port: int
    changes: dict[str, Any] = field(default_factory=dict)
    heard: Heard = field(default_factory=Heard)

    def __post_init__(self) -> None:
        values = {
            "redis_url": self.redis.url,
            "database_url": f"sqlite:///{self.database}",
            "blob_url": f"file:{self.folder / 'blobs'}",
            "imap_host": "127.0.0.1",
            "imap_port": self.port,
            "imap_tls": False,
            "imap_user": USER,
            "imap_auth": "password",
            "imap_password": PASSWORD,
        }
        self.settings = Settings(**(values | self.changes))
        self.account = self.settings.all_accounts[0]
        self.ledger = LedgerOnDemand(self.settings.database_url)
        self.blobs = open_blobs(self.settings.blob_url)

    @property
    def database(self) -> Path:
        return self.folder / "ledger.db"

    def source(self) -> Source:
        made = link(self.redis.url)
        return Source(self.account, self.settings, made, Intake(made), self.ledger, self.blobs, self.heard)

    def sync(self) -> None:
        """What the producer does on a connection."""
        with self._opened() as (source, connection, opened):
            _pass(source, connection, opened)

    def work(self, most: int = 1_000_000) -> int:
        """What a worker does with up to `most` messages; returns how many the ledger had already."""
        sink = DatabaseSink(self.ledger(), self.blobs, self.settings.blob_threshold_bytes)
        queue = self._queue()
        had = 0
        while most > 0 and (batch := queue.fresh(min(most, 100), block=False)):
            most -= len(batch)
            had += len(sink.deliver([self._parcel(each.message) for each in batch]))
            queue.complete(batch)
        return had

    def _queue(self) -> Queue:
        queue = Queue(link(self.redis.url), "here-worker-1", 60.0)
        queue.ensure_group()
        return queue

    def _parcel(self, sent) -> Parcel:
        raw = sent.raw if sent.raw is not None else self.blobs.get(sent.raw_ref)
        return Parcel(parse(sent.envelope, raw), raw, sent.raw_ref)

    def bury(self, most: int) -> None:
        queue = self._queue()
        for each in queue.fresh(most, block=False):
            assert queue.bury(each, {"dead_reason": "permanent"})

    def reconcile(self, *, repair: bool = False, room: Callable[[], bool] = lambda: True) -> Report:
        with self.audit(room if repair else None) as audit:
            return audit.run()

    @contextmanager
    def audit(self, room: Callable[[], bool] | None = None) -> Iterator[Audit]:
        with self._opened() as (source, connection, opened):
            yield source.audit(connection, opened, room)

    @contextmanager
    def _opened(self) -> Iterator[tuple]:
        with closing(log_in(self.account, 10.0)) as connection:
            yield self.source(), connection, connection.open(connection.find(self.account.imap_mailbox))

    def sql(self, statement: str) -> list[tuple]:
        with closing(sqlite3.connect(self.database)) as database, database:
            return database.execute(statement).fetchall()

    def stored(self) -> list[str]:
        return sorted(row[0] for row in self.sql("SELECT sha256 FROM emails"))

    def queued(self) -> int:
        with self.redis.client() as client:
            return client.xlen(KEYS.stream)

    def remove_queued(self, count: int) -> None:
        """Lose entries as an operator's mistake would."""
        with self.redis.client() as client:
            client.xdel(KEYS.stream, *[entry for entry, _ in client.xrange(KEYS.stream, count=count)])

    def flush(self) -> None:
        with self.redis.client() as client:
            client.flushall()

    def volume(self) -> int:
        with self.redis.client() as client:
            return int(client.get(KEYS.volume) or 0)


def letter(number: int) -> bytes:
    return b"Subject: letter %d\r\nMessage-ID: <%d@example.org>\r\n\r\nhello %d\r\n" % (number, number, number)


def digests(count: int) -> list[str]:
    return sorted(hashlib.sha256(letter(number)).hexdigest() for number in range(count))


@contextmanager
def gmail(**settings) -> Iterator[RunningSandbox]:
    credentials = Credentials(user=USER, app_password=PASSWORD)
    with running_sandbox(SandboxSettings(credentials=credentials, **settings)) as running:
        yield running


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
    world.bury(10)
    return world


def sums(report: Report) -> tuple[int, int, int, int]:
    return report.delivered, report.dead, report.queued, report.missing


def test_every_message_is_accounted_for(filled: World):
    report = filled.reconcile()
    assert sums(report) == (10, 10, 10, 0)
    assert (report.checked, report.complete, report.ahead) == (30, True, 0)
    assert (report.duplicate, report.unexpected, report.excluded) == (0, 0, 0)


def test_mail_above_the_cursor_is_no_gap(filled: World, sandbox: RunningSandbox):
    sandbox.deliver(letter(30))
    report = filled.reconcile(repair=True)
    assert (report.checked, report.missing, report.ahead) == (30, 0, 1)


def test_lost_entries_are_named_and_filled_once(filled: World):
    filled.remove_queued(4)
    found = filled.reconcile()
    assert (sums(found), found.complete) == ((10, 10, 6, 4), False)
    assert found.missing_uids == [21, 22, 23, 24]
    assert filled.queued() == 6
    repaired = filled.reconcile(repair=True)
    assert (repaired.missing, repaired.repaired, repaired.complete) == (4, 4, True)
    assert sums(filled.reconcile(repair=True)) == (10, 10, 10, 0)
    assert filled.work() == 0
    assert sums(filled.reconcile()) == (20, 10, 0, 0)


def test_what_an_operator_gave_up_does_not_come_back(filled: World):
    with filled.redis.client() as client:
        entries = client.xrange(KEYS.dlq)
        client.delete(KEYS.dlq)
    assert sums(filled.reconcile()) == (10, 0, 10, 10)
    filled.ledger().note_purged(f"default:gm:{int(fields[b'gm_msgid'])}" for _, fields in entries[:9])
    report = filled.reconcile(repair=True)
    assert (report.purged, report.missing, report.repaired) == (9, 1, 1)
    filled.flush()
    filled.sync()  # reads the mailbox from its beginning
    assert filled.queued() == 11
    filled.work()
    assert (sums(filled.reconcile()), filled.reconcile().purged) == ((21, 0, 0, 0), 9)


def test_rows_deleted_from_the_ledger_come_back(filled: World):
    filled.sql("DELETE FROM emails WHERE uid <= 3")
    assert filled.reconcile().missing_uids == [1, 2, 3]
    assert filled.reconcile(repair=True).repaired == 3
    assert filled.work() == 0
    assert len(filled.stored()) == 20
    filled.sql("DELETE FROM emails")
    assert filled.reconcile().missing == 20


def test_a_repair_leaves_cursor_and_volume_right(filled: World):
    cursor = Intake(link(filled.redis.url)).cursor("default", "[Gmail]/All Mail")
    filled.sql("DELETE FROM emails WHERE uid <= 10")
    filled.reconcile(repair=True)
    assert Intake(link(filled.redis.url)).cursor("default", "[Gmail]/All Mail") == cursor
    with filled.redis.client() as client:
        entries = client.xrange(KEYS.stream)
    assert filled.volume() == sum(len(part) for _, fields in entries for item in fields.items() for part in item)
    filled.work()
    assert filled.volume() == 0


def test_after_a_flush_only_what_was_not_delivered_is_queued(filled: World, sandbox: RunningSandbox):
    filled.flush()
    lost = filled.reconcile()
    assert (sums(lost), lost.ahead) == ((10, 0, 0, 20), 0)
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
    with filled._opened() as (source, connection, opened):
        sync = source.sync(connection, opened, lambda _size: True)
        history = source.history(connection, opened, lambda _size: 0.0).steps()
        for queued in (10, 20):
            assert sync.run()
            assert any(pause == math.inf for pause in history)
            assert filled.queued() == queued
            filled.flush()


def test_a_new_uidvalidity_queues_nothing_again(filled: World, sandbox: RunningSandbox):
    sandbox.arm("uidvalidity_reset", mailbox="\\All")
    filled.sync()
    assert filled.heard.of(MailboxChanged)
    assert filled.queued() == 10
    assert sums(filled.reconcile(repair=True)) == (10, 10, 10, 0)
    assert filled.work() == 0
    report = filled.reconcile()
    assert (sums(report), report.duplicate, report.unexpected) == ((20, 10, 0, 0), 0, 0)


def test_after_a_new_uidvalidity_places_are_learned_once(filled: World, sandbox: RunningSandbox):
    filled.work()
    sandbox.arm("uidvalidity_reset", mailbox="\\All")
    filled.sync()
    assert filled.sql("SELECT count(*) FROM places") == [(20,)]
    filled.sql("DELETE FROM emails WHERE uid = 1")
    assert filled.reconcile().missing == 1


def test_dead_letters_replayed_meanwhile_are_queued_not_missing(filled: World):
    with filled.redis.client() as client, filled.audit() as audit:
        accounted = audit._accounted._underway
        look = accounted._census.dead

        def replayed_first():
            for entry, fields in client.xrange(KEYS.dlq):
                client.xadd(KEYS.stream, fields)
                client.xdel(KEYS.dlq, entry)
            return look()

        accounted._census.dead = replayed_first
        assert sums(audit.run()) == (10, 0, 20, 0)


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
    sandbox.arm("uidvalidity_reset", mailbox="\\All")
    world.sync()
    report = world.reconcile(repair=True)
    assert (sums(report), report.excluded) == ((1, 0, 3, 0), 5)
    assert world.work() == 0
    assert world.stored() == sorted(hashlib.sha256(letter(number)).hexdigest() for number in range(5, 9))


def test_mail_moved_to_the_trash_is_unexpected_and_back_it_is_not(filled: World, sandbox: RunningSandbox):
    first = sandbox.messages()[0]
    sandbox.arm("trash_and_back", msgid=first.msgid)
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
    with filled.audit(lambda: True) as first, filled.audit(lambda: True) as second:
        steps = [first.steps(), second.steps()]
        first._set_out()
        second._set_out()
        for step in steps:
            for _ in step:
                pass
    assert filled.queued() == 10
    assert filled.work() == 0


def test_what_another_appended_since_we_looked_is_not_appended_again(redis_server: RedisServer):
    gaps, census = Gaps(link(redis_server.url), "default"), Census(link(redis_server.url))
    messages = [message(uid) for uid in range(1, 31)]
    assert gaps.fill(messages[:20], BEGINNING) == 20
    assert gaps.fill(messages, BEGINNING) == 10
    last = [page.last for page in census.queued()][-1]
    assert gaps.fill([message(31)], last) == 1
    assert gaps.fill([message(31)], last) == 0
    plain = replace(message(40), envelope=replace(message(40).envelope, gm_msgid=None))
    assert (gaps.fill([plain], last), gaps.fill([plain], last)) == (1, 0)


def test_a_full_stream_puts_the_repair_off(filled: World):
    filled.remove_queued(5)
    report = filled.reconcile(repair=True, room=lambda: False)
    assert (report.missing, report.repaired, report.complete) == (5, 0, False)
    assert filled.queued() == 5


def test_a_census_carries_identities_and_no_payload(redis_server: RedisServer):
    intake = Intake(link(redis_server.url))
    intake.restart_cursor("default", "INBOX", Cursor(1, 0))
    sent = [message(uid, raw=bytes([uid]) * 100_000) for uid in range(1, 51)]
    intake.append("default", "INBOX", Cursor(1, 0), 50, sent)
    with redis_server.client() as client:
        client.xadd(KEYS.stream, {"hello": "world"})
        before = client.info("stats")["total_net_output_bytes"]
        pages = list(Census(link(redis_server.url)).queued())
        assert client.info("stats")["total_net_output_bytes"] - before < 20_000
    found = [entry for page in pages for entry in page.entries]
    assert [entry.email_id for entry in found] == [each.envelope.email_id for each in sent]
    assert [entry.sha256 for entry in found] == [each.envelope.sha256 for each in sent]


def test_a_page_of_large_entries_is_short(redis_server: RedisServer):
    intake = Intake(link(redis_server.url))
    intake.restart_cursor("default", "INBOX", Cursor(1, 0))
    noise = [hashlib.shake_256(bytes([uid])).digest(500_000) for uid in range(1, 26)]
    sent = [message(uid, raw=raw) for uid, raw in enumerate(noise, start=1)]
    for each in sent:
        intake.append("default", "INBOX", Cursor(1, each.envelope.uid - 1), each.envelope.uid, [each])
    pages = [len(page.entries) for page in Census(link(redis_server.url)).queued()]
    assert pages == [10, 10, 5]


def test_twenty_thousand_messages_are_compared_in_windows(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
):
    window, stretch = 3000, 200
    monkeypatch.setattr("email_ingestion.reconcile.audit.LIST_WINDOW", window)
    monkeypatch.setattr("email_ingestion.reconcile.audit.FETCH_MOST", stretch)
    assert window < LIST_WINDOW
    with gmail(mail="bulk:20000") as sandbox:
        world = World(tmp_path, redis_server, sandbox.imap_port)
        with world.audit() as audit:
            largest = {"uids": 0, "uids_from": 0, "outlines": 0}

            def measured(name: str, call):
                def measure(*arguments):
                    found = call(*arguments)
                    largest[name] = max(largest[name], len(found))
                    return found

                return measure

            for name in largest:
                setattr(audit._connection, name, measured(name, getattr(audit._connection, name)))
            report = audit.run()
        assert (report.checked, report.missing, len(report.missing_uids)) == (20_000, 20_000, NAMED_MOST)
        assert (largest["uids"], largest["outlines"]) == (window, stretch)
        with world.audit() as audit:
            opened = audit._opened
            Intake(link(redis_server.url)).restart_cursor("default", opened.name, Cursor(opened.uidvalidity, 0))
            for name in ("uids", "uids_from"):
                setattr(audit._connection, name, measured(name, getattr(audit._connection, name)))
            assert audit.run().ahead == 20_000
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
    assert (sums(restored), restored.ahead) == ((10, 0, 0, 0), 10)
    world.sync()
    assert world.work() == 9
    assert world.stored() == digests(20)
    report = world.reconcile()
    assert (sums(report), report.complete) == ((20, 0, 0, 0), True)


def test_an_audit_announces_what_it_found(filled: World):
    filled.remove_queued(2)
    filled.reconcile(repair=True)
    assert filled.heard.of(Reconciled) == [Reconciled("default", 2, 0, 0, "[Gmail]/All Mail")]
    assert filled.heard.of(Published)[-1].count == 2


# The ledger's part, on both databases


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with running_postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    sqlite_url = f"sqlite:///{tmp_path}/ledger.db"
    url = sqlite_url if request.param == "sqlite" else fresh_schema(request.getfixturevalue("postgres"))
    with closing(open_ledger(url)) as opened:
        yield opened


def record(ledger: Ledger, *messages) -> None:
    parsed = [(parse(each.envelope, each.raw), reference(each.envelope.sha256)) for each in messages]
    ledger.record([StoredEmail(email, ref) for email, ref in parsed])


def test_the_ledger_tells_where_messages_came_from(ledger: Ledger):
    record(ledger, message(1), message(2, uidvalidity=2**32 - 1))
    ids = ["default:gm:1001", "default:gm:1002", "default:gm:1003"]
    assert ledger.places(ids) == {ids[0]: Place("INBOX", 1, 1), ids[1]: Place("INBOX", 2**32 - 1, 2)}


def test_the_ledger_remembers_places_only_of_messages_it_has(ledger: Ledger):
    record(ledger, message(1), message(2))
    again = {Place("INBOX", 7, uid): f"default:gm:{1000 + uid}" for uid in (1, 2)}
    ledger.note_places("default", again)
    ledger.note_places("default", again)
    ledger.note_places("default", {Place("INBOX", 7, 2): "default:gm:1001"})
    ledger.note_places("default", {})
    assert ledger.found_again("default", "INBOX", 7, 1, 9) == dict.fromkeys((1, 2), Place("INBOX", 1, 1))
    assert ledger.found_again("default", "INBOX", 7, 2, 2) == {2: Place("INBOX", 1, 1)}
    assert ledger.found_again("other", "INBOX", 7, 1, 9) == {}


def test_the_ledger_tells_when_it_began(ledger: Ledger):
    assert ledger.begun("default", "INBOX") is None
    dates = [datetime(2026, month, 1, tzinfo=UTC) for month in (5, 4, 6)]
    places = [(1, 10), (2, 3), (2, 4)]
    for number, ((uidvalidity, uid), date) in enumerate(zip(places, dates, strict=True)):
        record(ledger, message(uid, uidvalidity=uidvalidity, gm_msgid=number, internaldate=date))
    record(ledger, message(2, gm_msgid=77, mailbox="Other", internaldate=datetime(2020, 1, 1, tzinfo=UTC)))
    assert ledger.begun("default", "INBOX") == dates[1]


# Without X-GM-EXT-1

MAILBOX = "Archive"


@pytest.fixture(scope="module")
def dovecot() -> Iterator[DovecotServer]:
    with running_sandbox(SandboxSettings()) as provider, running_dovecot(provider.oauth_port) as server:
        yield server


@pytest.fixture
def plain(tmp_path: Path, redis_server: RedisServer, dovecot: DovecotServer) -> World:
    """Twelve messages: four delivered, four dead, four queued."""
    _renew(dovecot, [])
    made = World(tmp_path, redis_server, dovecot.imap_port, {"imap_mailbox": MAILBOX})
    made.sync()
    with imapclient.IMAPClient("127.0.0.1", dovecot.imap_port, ssl=False) as client:
        client.login(USER, PASSWORD)
        client.multiappend(MAILBOX, [letter(number) for number in range(12)])
    made.sync()
    made.work(4)
    made.bury(4)
    return made


def _renew(dovecot: DovecotServer, messages: list[bytes]) -> None:
    """A mailbox with these messages; one that is made anew gets a new UIDVALIDITY."""
    with imapclient.IMAPClient("127.0.0.1", dovecot.imap_port, ssl=False) as client:
        client.login(USER, PASSWORD)
        if client.folder_exists(MAILBOX):
            client.delete_folder(MAILBOX)
        client.create_folder(MAILBOX)
        if messages:
            client.multiappend(MAILBOX, messages)


def test_a_server_without_gmail_identities_is_compared_by_place(plain: World):
    assert sums(plain.reconcile()) == (4, 4, 4, 0)
    plain.remove_queued(2)
    plain.sql("DELETE FROM emails WHERE subject = 'letter 0'")
    assert plain.reconcile().missing == 3
    assert plain.reconcile(repair=True).repaired == 3
    assert plain.reconcile().complete
    assert plain.work() == 0
    assert sums(plain.reconcile()) == (8, 4, 0, 0)


def test_without_gmail_identities_a_new_uidvalidity_queues_nothing_again(plain: World, dovecot: DovecotServer):
    _renew(dovecot, [letter(number) for number in range(12)] + [letter(12)])
    plain.sync()
    assert plain.heard.of(MailboxChanged)
    assert plain.queued() == 5
    assert sum(event.count for event in plain.heard.of(Skipped) if event.reason == "known") == 12
    assert sums(plain.reconcile(repair=True)) == (4, 4, 5, 0)
    assert plain.work() == 0
    assert sums(plain.reconcile(repair=True)) == (9, 4, 0, 0)
    assert plain.stored() == sorted(set(digests(13)) - set(digests(8)) | set(digests(4)))


def test_the_same_bytes_twice_are_a_duplicate_and_not_missing(plain: World, dovecot: DovecotServer):
    plain.work()
    with imapclient.IMAPClient("127.0.0.1", dovecot.imap_port, ssl=False) as client:
        client.login(USER, PASSWORD)
        client.append(MAILBOX, letter(0))
    plain.sync()
    assert plain.work() == 1
    for _ in range(2):
        report = plain.reconcile(repair=True)
        assert (report.delivered, report.duplicate, report.missing) == (9, 1, 0)
