"""The same reconciliation where the server knows no X-GM-EXT-1: by place, and by bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import imapclient
import pytest

from email_ingestion.events import MailboxChanged, Skipped
from email_ingestion.mailbox import imap_mailbox
from gmail_sandbox import SandboxSettings, running_sandbox
from tests.servers.accounting import World, digests, letter, sums
from tests.servers.dovecot import PASSWORD, USER, DovecotServer, running_dovecot
from tests.servers.redis import RedisServer

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
    made.dead_letter(4)
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


def test_what_was_erased_stays_away_and_is_not_even_fetched(plain: World, monkeypatch: pytest.MonkeyPatch):
    """Delivered, dead and queued alike; its place is known by a hash with size and date, as long as it is the same."""
    identities = tuple(f"default:sha256:{each}" for each in digests(12)[:6])
    assert plain.erase(email_ids=identities).matched == 6
    before = sums(plain.reconcile())
    assert sum(before) == 6
    fetched: list[int] = []
    usual = imap_mailbox.ImapMailbox.fetch_bodies
    monkeypatch.setattr(
        imap_mailbox.ImapMailbox, "fetch_bodies", lambda self, uids: fetched.extend(uids) or usual(self, uids)
    )
    with plain.reconciler(lambda: True) as reconciler:
        reconciler._samples = 0  # it reads some delivered messages whole otherwise
        report = reconciler.run()
    assert report.purged == 6
    assert sums(report) == before
    assert not fetched


def test_what_was_erased_stays_away_under_a_new_uidvalidity(plain: World, dovecot: DovecotServer):
    plain.erase(email_ids=tuple(f"default:sha256:{each}" for each in digests(12)[:6]))
    _renew(dovecot, [letter(number) for number in range(13)])
    plain.sync()
    plain.work()
    plain.flush()
    plain.sync()
    plain.work()
    report = plain.reconcile(repair=True)
    assert report.missing == 0
    assert plain.work() == 0
    assert plain.stored() == sorted(set(digests(13)) - set(digests(12)[:6]))
