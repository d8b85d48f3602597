"""A mail server that was restored from a backup: the same UIDVALIDITY, and UIDs given out anew."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import imapclient
import pytest

from email_ingestion.events import AlteredOnServer, MailboxContradicted
from gmail_sandbox import SandboxSettings, running_sandbox
from tests.servers.accounting import World, digests, gmail, letter
from tests.servers.dovecot import PASSWORD, USER, DovecotServer, running_dovecot
from tests.servers.redis import RedisServer

MAILBOX = "Archive"


@pytest.fixture
def dovecot() -> Iterator[DovecotServer]:
    with running_sandbox(SandboxSettings()) as provider, running_dovecot(provider.oauth_port) as server:
        yield server


@pytest.fixture
def restored(tmp_path: Path, redis_server: RedisServer, dovecot: DovecotServer) -> World:
    """Ten messages are in the backup, fifteen more were delivered when it is brought back; other mail came since."""
    made = World(tmp_path, redis_server, dovecot.imap_port, {"imap_mailbox": MAILBOX})
    _append(dovecot, range(10), "2026-01-01", create=True)
    dovecot.stop()
    home, backup = dovecot.directory / "home", tmp_path / "backup"
    shutil.copytree(home, backup)
    dovecot.start()
    _append(dovecot, range(10, 25), "2026-02-01")
    made.sync()
    assert made.work() == 0
    assert made.stored() == digests(25)
    dovecot.stop()
    shutil.rmtree(home)
    shutil.copytree(backup, home)
    dovecot.start()
    return made


def _append(dovecot: DovecotServer, numbers: range, day: str, *, create: bool = False) -> None:
    with imapclient.IMAPClient("127.0.0.1", dovecot.imap_port, ssl=False) as client:
        client.login(USER, PASSWORD)
        if create:
            client.create_folder(MAILBOX)
        start = datetime.fromisoformat(day).replace(tzinfo=UTC)
        for number in numbers:
            client.append(MAILBOX, letter(number), msg_time=start + timedelta(minutes=number))


def test_mail_under_uids_given_out_anew_is_fetched_and_nothing_else(restored: World, dovecot: DovecotServer):
    _append(dovecot, range(100, 115), "2026-03-01")
    restored.sync()
    assert len(restored.heard.of(MailboxContradicted)) == 1
    assert restored.queued() == 15
    assert restored.work() == 0
    assert restored.stored() == sorted(
        [sha256(letter(number)).hexdigest() for number in (*range(25), *range(100, 115))]
    )
    restored.sync()
    assert restored.queued() == 0
    assert len(restored.heard.of(MailboxContradicted)) == 1
    report = restored.reconcile(repair=True)
    assert (report.missing, report.delivered, report.complete) == (0, 25, True)


def test_a_cursor_ahead_of_the_mailbox_is_noticed(restored: World, dovecot: DovecotServer):
    restored.sync()
    (event,) = restored.heard.of(MailboxContradicted)
    assert "UID 25" in event.reason
    assert restored.queued() == 0
    _append(dovecot, range(100, 103), "2026-03-01")
    restored.sync()
    assert restored.work() == 0
    assert len(restored.stored()) == 28


def test_the_audit_compares_content_and_not_places(restored: World, dovecot: DovecotServer):
    _append(dovecot, range(100, 115), "2026-03-01")
    assert restored.reconcile().missing == 15
    assert restored.reconcile(repair=True).repaired == 15
    assert restored.work() == 0
    assert restored.reconcile().complete
    assert not restored.heard.of(AlteredOnServer)


def test_expunges_other_dates_and_other_sizes_are_no_contradiction(
    tmp_path: Path, redis_server: RedisServer, dovecot: DovecotServer
):
    made = World(tmp_path, redis_server, dovecot.imap_port, {"imap_mailbox": MAILBOX})
    _append(dovecot, range(10), "2026-01-01", create=True)
    made.sync()
    made.work()
    with imapclient.IMAPClient("127.0.0.1", dovecot.imap_port, ssl=False) as client:
        client.login(USER, PASSWORD)
        client.select_folder(MAILBOX)
        client.delete_messages([9, 10])
        client.expunge()
    made.sql("UPDATE emails SET internaldate = replace(internaldate, '2026', '2025'), size = size + 1")
    made.sync()
    report = made.reconcile(repair=True)
    assert (report.delivered, report.missing, report.altered) == (8, 0, 0)
    assert not made.heard.of(MailboxContradicted)
    assert made.queued() == 0


def test_bytes_that_the_server_changed_are_reported_and_not_new_mail(
    tmp_path: Path, redis_server: RedisServer, dovecot: DovecotServer
):
    made = World(tmp_path, redis_server, dovecot.imap_port, {"imap_mailbox": MAILBOX})
    _append(dovecot, range(3), "2026-01-01", create=True)
    made.sync()
    made.work()
    other = "f" * 64
    made.sql(f"UPDATE emails SET sha256 = '{other}', email_id = 'default:sha256:{other}' WHERE uid = 2")
    made.sync()
    report = made.reconcile(repair=True)
    assert (report.delivered, report.missing, report.altered) == (3, 0, 1)
    assert [event.uid for event in made.heard.of(AlteredOnServer)] == [2]
    assert made.queued() == 0


def test_while_the_worker_is_behind_nothing_is_queued_twice(restored: World, dovecot: DovecotServer):
    _append(dovecot, range(100, 115), "2026-03-01")
    for _ in range(3):
        restored.sync()
    assert restored.queued() == 15
    assert restored.reconcile(repair=True).repaired == 0
    assert restored.work() == 0
    assert restored.reconcile().complete


def test_what_waits_in_the_stream_is_not_taken_for_the_mail_that_has_its_uids_now(
    tmp_path: Path, redis_server: RedisServer, dovecot: DovecotServer
):
    """The database was lost at the same time: the stream is all that is known of the mail before."""
    made = World(tmp_path, redis_server, dovecot.imap_port, {"imap_mailbox": MAILBOX})
    _append(dovecot, range(10), "2026-01-01", create=True)
    home, backup = dovecot.directory / "home", tmp_path / "backup"
    dovecot.stop()
    shutil.copytree(home, backup)
    dovecot.start()
    _append(dovecot, range(10, 25), "2026-02-01")
    made.sync()
    dovecot.stop()
    shutil.rmtree(home)
    shutil.copytree(backup, home)
    dovecot.start()
    _append(dovecot, range(100, 115), "2026-03-01")
    assert made.queued() == 25
    report = made.reconcile(repair=True)
    assert (report.queued, report.missing, report.repaired) == (10, 15, 15)
    assert made.work() == 0
    assert len(made.stored()) == 40
    assert made.reconcile().complete


def test_gmail_identities_show_what_was_given_out_anew(tmp_path: Path, redis_server: RedisServer):
    state, backup = tmp_path / "state.json", tmp_path / "backup.json"
    with gmail(state=state) as sandbox:
        for number in range(5):
            sandbox.deliver(letter(number))
    shutil.copy(state, backup)
    with gmail(state=state) as sandbox:
        for number in range(5, 12):
            sandbox.deliver(letter(number))
        made = World(tmp_path, redis_server, sandbox.imap_port)
        made.sync()
        made.work()
        assert made.stored() == digests(12)
    shutil.copy(backup, state)
    with gmail(state=state) as sandbox:
        for number in range(100, 107):
            sandbox.deliver(letter(number))
        again = World(tmp_path, redis_server, sandbox.imap_port)
        again.sync()
        assert len(again.heard.of(MailboxContradicted)) == 1
        assert again.queued() == 7
        again.work()
        assert len(again.stored()) == 19
        assert again.reconcile().complete
