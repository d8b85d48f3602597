"""Labels that change after delivery change in the database too, whatever happens in between."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from email_ingestion.app.account import log_in
from email_ingestion.errors import LeaseLost, StaleCursor
from email_ingestion.events import ConnectionFailed, LabelsChanged
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.mailbox.imap_mailbox import SelectedMailbox
from email_ingestion.parsing import parse
from email_ingestion.producer import label_sync
from email_ingestion.records import Cursor
from email_ingestion.sinks import SinkMessage
from email_ingestion.sinks.database import DatabaseSink
from email_ingestion.stream import Appender, Consumer
from gmail_sandbox import RunningSandbox, SandboxSettings, running_sandbox
from tests.servers.links import link
from tests.servers.redis import RedisServer
from tests.servers.watching import Watched, letter

MESSAGES = 10
TRACKING = {"imap_track_labels": True, "imap_poll_seconds": 0.05}


@pytest.fixture
def sandbox() -> Iterator[RunningSandbox]:
    with running_sandbox(SandboxSettings()) as running:
        for number in range(MESSAGES):
            running.deliver(letter(number))
        yield running


@pytest.fixture
def watched(sandbox: RunningSandbox, redis_server: RedisServer, tmp_path: Path) -> Watched:
    return Watched(sandbox, redis_server, tmp_path, TRACKING)


class Tracking:
    """What a watcher does on one connection, a step at a time."""

    def __init__(self, watched: Watched, connection: ImapMailbox, mailbox: SelectedMailbox) -> None:
        source = watched.source()
        self.connection = connection
        self._new_mail = partial(
            source.new_mail(connection, mailbox).run, lambda _size, _in_flight: 0.0, lambda _seconds: True
        )
        self._history = source.history(connection, mailbox).steps(lambda _size, _in_flight: 0.0)
        self._labels = source.labels(connection, mailbox).steps(lambda _size: 0.0)

    def fetch(self) -> None:
        assert self._new_mail()
        while not next(self._history):
            pass

    def look(self) -> None:
        """One round over the labels."""
        while next(self._labels):
            time.sleep(0.01)
        while not next(self._labels):
            pass


@contextmanager
def tracking(watched: Watched) -> Iterator[Tracking]:
    with closing(log_in(watched.account, 5.0)) as connection:
        yield Tracking(watched, connection, connection.examine(connection.find_mailbox("auto")))


def record(watched: Watched) -> None:
    """What a worker does with all that is queued."""
    sink = DatabaseSink(watched.ledger(), watched.source().blobs, watched.settings.blob_threshold_bytes)
    consumer = Consumer(link(watched.redis.url), "here-worker-1", 60.0)
    while batch := consumer.read_new(100, block=False):
        messages = [each.message for each in batch if each.message]
        sink.deliver([SinkMessage(parse(each.envelope, each.raw or b""), each.raw or b"") for each in messages])
        consumer.ack(batch)


def label(watched: Watched, number: int, name: str) -> int:
    """Put a label on the `number`-th message, as its owner would."""
    msgid = watched.sandbox.messages()[number].msgid
    watched.sandbox.with_account(lambda account: account.change_labels(msgid, add=[name]))
    return msgid


def labelled(watched: Watched, name: str) -> set[int]:
    """The messages whose record has a label."""
    rows = watched.sql("SELECT gm_msgid, labels FROM emails")
    assert len(rows) == MESSAGES
    return {msgid for msgid, names in rows if name in json.loads(names)}


def modseq(watched: Watched) -> int | None:
    return Appender(link(watched.redis.url)).modseq("default", "[Gmail]/All Mail")


def test_a_label_put_on_later_is_in_the_record_and_no_body_is_fetched_for_it(watched: Watched):
    with tracking(watched) as mail:
        mail.fetch()
        record(watched)
        mail.look()
        msgid = label(watched, 3, "Übung/später")
        before = mail.connection.received_bytes
        mail.look()
        assert mail.connection.received_bytes - before < 1000
    assert labelled(watched, "Übung/später") == {msgid}
    assert [event.count for event in watched.heard.of(LabelsChanged)] == [1]
    assert set(watched.sandbox.with_stats(lambda stats: dict(stats.fetched_messages)).values()) == {1}


def test_what_changed_while_nobody_looked_is_found_and_what_was_done_is_not_asked_again(watched: Watched):
    with tracking(watched) as mail:
        mail.fetch()
        record(watched)
        mail.look()
    done = modseq(watched)
    msgid = label(watched, 0, "away")
    with tracking(watched) as mail:
        mail.look()
        assert labelled(watched, "away") == {msgid}
        before = mail.connection.received_bytes
        mail.look()
        mail.look()
        assert mail.connection.received_bytes - before < 2000
    assert done
    assert (modseq(watched) or 0) > done


def test_a_change_before_the_message_is_recorded_is_not_lost(watched: Watched):
    with tracking(watched) as mail:
        mail.fetch()
        msgid = label(watched, 5, "early")
        for _ in range(3):
            mail.look()
        record(watched)
        assert labelled(watched, "early") == set()
        mail.look()
    assert labelled(watched, "early") == {msgid}


def test_a_message_recorded_between_two_questions_gets_its_labels(watched: Watched, monkeypatch: pytest.MonkeyPatch):
    with tracking(watched) as mail:
        mail.fetch()
        msgid = label(watched, 5, "between")
        apply = label_sync.LabelSync._apply

        def record_first(label_sync, changes, in_flight):
            refresh = in_flight.refresh

            def recorded_meanwhile() -> None:
                record(watched)
                refresh()

            monkeypatch.setattr(in_flight, "refresh", recorded_meanwhile)
            return apply(label_sync, changes, in_flight)

        monkeypatch.setattr(label_sync.LabelSync, "_apply", record_first)
        mail.look()
    assert labelled(watched, "between") == {msgid}


def test_a_change_behind_the_window_that_is_being_read_is_not_lost(watched: Watched, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(label_sync, "WINDOW", 3)
    with tracking(watched) as mail:
        mail.fetch()
        record(watched)
        mail.look()
        read = mail.connection.fetch_changes
        changed: dict[str, int] = {}

        def change_both_sides(low: int, high: int, since: int, **options):
            found = read(low, high, since, **options)
            if not changed:
                changed["first"] = label(watched, 0, "behind")
                changed["last"] = label(watched, MESSAGES - 1, "behind")
            return found

        monkeypatch.setattr(mail.connection, "fetch_changes", change_both_sides)
        mail.look()
        assert labelled(watched, "behind") == {changed["last"]}
        mail.look()
    assert labelled(watched, "behind") == set(changed.values())


def test_without_a_memory_of_it_all_labels_are_compared(watched: Watched):
    with tracking(watched) as mail:
        mail.fetch()
        record(watched)
        mail.look()
    msgid = label(watched, 2, "forgotten")
    with watched.redis.client() as client:
        client.flushall()
    with tracking(watched) as mail:
        mail.fetch()
        mail.look()
    assert labelled(watched, "forgotten") == {msgid}


def test_a_new_uidvalidity_forgets_the_memory(watched: Watched):
    with tracking(watched) as mail:
        mail.fetch()
        record(watched)
        mail.look()
    assert modseq(watched)
    watched.arm_fault("uidvalidity_reset")
    with tracking(watched) as mail:
        mail.fetch()
        assert modseq(watched) is None
        msgid = label(watched, 1, "anew")
        mail.look()
    assert labelled(watched, "anew") == {msgid}


def test_labels_the_server_does_not_send_at_once_are_asked_for_again(watched: Watched):
    with tracking(watched) as mail:
        mail.fetch()
        record(watched)
        mail.look()
        msgids = {label(watched, number, "half") for number in range(MESSAGES)}
        watched.arm_fault("partial_fetch", missing=8, bodies_only=False)
        mail.look()
        assert len(labelled(watched, "half")) < len(msgids)
        mail.look()
    assert labelled(watched, "half") == msgids


def test_labels_nobody_can_parse_are_taken_over_too(watched: Watched):
    with tracking(watched) as mail:
        mail.fetch()
        record(watched)
        mail.look()
        watched.arm_fault("strange_labels", messages=2, unbalanced=True)
        for number in range(MESSAGES):
            label(watched, number, "plain")
        mail.look()
    assert len(labelled(watched, "plain")) == MESSAGES
    assert len(labelled(watched, "[abc")) == 2


def test_a_watcher_tracks_labels_beside_new_mail_and_counts_them(watched: Watched):
    with watched.running():
        watched.arrives()
        record(watched)
        msgid = label(watched, 7, "live")
        watched.until(lambda: labelled(watched, "live") == {msgid}, "the label in the record")
        watched.until(lambda: watched.metric("imap_label_changes_total", account="default") == 1, "it is counted")
    assert watched.heard.of(ConnectionFailed) == []


def test_nothing_is_looked_at_unless_it_is_asked_for(
    sandbox: RunningSandbox, redis_server: RedisServer, tmp_path: Path
):
    watched = Watched(sandbox, redis_server, tmp_path, {"imap_poll_seconds": 0.05})
    with tracking(watched) as mail:
        mail.fetch()
        record(watched)
        label(watched, 0, "ignored")
        assert next(mail._labels) == float("inf")
    assert labelled(watched, "ignored") == set()


def test_whoever_lost_the_account_or_its_cursor_notes_nothing(redis_server: RedisServer):
    mine = Appender(link(redis_server.url), "here 1")
    with pytest.raises(LeaseLost):
        mine.set_modseq("default", "INBOX", 1, 5)
    anybody = Appender(link(redis_server.url))
    anybody.restart_cursor("default", "INBOX", Cursor(1, 0))
    with pytest.raises(StaleCursor):
        anybody.set_modseq("default", "INBOX", 2, 5)
    anybody.set_modseq("default", "INBOX", 1, 2**62 + 1)
    assert anybody.modseq("default", "INBOX") == 2**62 + 1
