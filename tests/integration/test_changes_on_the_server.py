"""What happens to delivered mail on its server is in the change feed: on a plain server, and on Gmail's look-alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import imapclient
import pytest

from email_ingestion.app.account import log_in
from gmail_sandbox import RunningSandbox, SandboxSettings, running_sandbox
from gmail_sandbox.message import MessageLocation
from tests.servers.accounting import World, gmail, letter
from tests.servers.dovecot import PASSWORD, USER, DovecotServer, running_dovecot
from tests.servers.redis import RedisServer

MAILBOX = "Followed"
TRACKING = {"imap_track_labels": True, "imap_poll_seconds": 3_600}


@pytest.fixture(scope="module")
def dovecot() -> Iterator[DovecotServer]:
    with running_sandbox(SandboxSettings()) as provider, running_dovecot(provider.oauth_port) as server:
        yield server


@contextmanager
def owner(server: DovecotServer) -> Iterator[imapclient.IMAPClient]:
    """The owner's own mail program, with the mailbox open."""
    with imapclient.IMAPClient("127.0.0.1", server.imap_port, ssl=False) as client:
        client.login(USER, PASSWORD)
        if not client.folder_exists(MAILBOX):
            client.create_folder(MAILBOX)
        client.select_folder(MAILBOX)
        yield client


def look(world: World) -> None:
    """One round over labels and flags, as the watcher makes it."""
    with closing(log_in(world.account, 10.0)) as connection:
        mailbox = connection.examine(connection.find_mailbox(world.account.imap_mailbox))
        steps = world.source().labels(connection, mailbox).steps(lambda _size: 0.0)
        while not next(steps):
            pass


def told(world: World, after: int) -> list[tuple[str, str, object]]:
    """The changes behind a number: kind, subject, details."""
    subjects = dict(world.sql("SELECT email_id, subject FROM emails"))
    changes = world.ledger().changes.read(after).changes
    return [(each.kind.value, subjects[each.email_id], each.details) for each in changes]


def test_flags_and_deletions_of_a_plain_server_are_told(
    tmp_path: Path, redis_server: RedisServer, dovecot: DovecotServer
):
    with owner(dovecot) as client:
        client.multiappend(MAILBOX, [letter(number) for number in range(4)])
    world = World(tmp_path, redis_server, dovecot.imap_port, {"imap_mailbox": MAILBOX, **TRACKING})
    world.sync()
    world.sync()
    world.work()
    born = world.ledger().changes.last()
    assert [kind for kind, _, _ in told(world, 0)] == ["born"] * 4
    look(world)
    with owner(dovecot) as client:
        uids = client.search()
        client.add_flags(uids[0], ["\\Flagged", "$Later"])
        client.add_flags(uids[1], ["\\Deleted"])
    look(world)
    look(world)
    flagged, trashed = sorted(told(world, born), key=lambda change: change[1])
    assert flagged[:2] == ("flagged", "letter 0")
    assert isinstance(flagged[2], dict)
    assert flagged[2]["added"] == ["$Later", "\\Flagged"]
    assert trashed[:2] == ("trashed", "letter 1")
    seen = world.ledger().changes.last()

    with owner(dovecot) as client:
        client.expunge()
        client.copy(uids[2], MAILBOX)  # moved within the mailbox: it is there under another UID
        client.add_flags(uids[2], ["\\Deleted"])
        client.expunge()
    world.sync()
    world.work()
    assert world.reconcile().complete
    world.reconcile()
    changes = [each for each in told(world, seen) if each[0] not in {"flagged", "trashed"}]
    assert changes == [("deleted", "letter 1", {"mailbox": MAILBOX})]
    gone = world.ledger().changes.last()
    with owner(dovecot) as client:
        client.append(MAILBOX, letter(1))
    world.sync()
    world.work()
    world.reconcile()
    assert told(world, gone) == [("restored", "letter 1", {"mailbox": MAILBOX})]


@pytest.fixture
def sandbox() -> Iterator[RunningSandbox]:
    with gmail() as running:
        yield running


def test_on_gmail_the_trash_is_a_deletion_and_back_it_is_restored(
    tmp_path: Path, redis_server: RedisServer, sandbox: RunningSandbox
):
    world = World(tmp_path, redis_server, sandbox.imap_port, TRACKING)
    for number in range(3):
        sandbox.deliver(letter(number))
    world.sync()
    world.work()
    look(world)
    born = world.ledger().changes.last()
    msgid = sandbox.messages()[1].msgid
    sandbox.with_account(lambda account: account.change_labels(msgid, add=["Plans"]))
    look(world)
    ((kind, _, details),) = told(world, born)
    assert isinstance(details, dict)
    assert (kind, details["added"]) == ("relabelled", ["Plans"])
    seen = world.ledger().changes.last()
    sandbox.with_account(lambda account: account.move(msgid, MessageLocation.TRASH))
    world.reconcile()
    world.reconcile()
    assert [kind for kind, _, _ in told(world, seen)] == ["deleted"]
    sandbox.with_account(lambda account: account.move(msgid, MessageLocation.ALL))
    world.sync()
    world.reconcile()
    assert [kind for kind, _, _ in told(world, seen)] == ["deleted", "restored"]
