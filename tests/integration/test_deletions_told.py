"""What a server with QRESYNC says to be deleted is in the change feed at the next look, and nothing else.

A Dovecot and a Cyrus, and servers that say what is not so.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import imapclient
import pytest

from email_ingestion.app.account import log_in
from email_ingestion.errors import SessionExpired
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.mailbox.imap_mailbox import SelectedMailbox
from email_ingestion.producer import vanished_mail
from tests.servers import cyrus as cyrus_server
from tests.servers.accounting import World, letter
from tests.servers.cyrus import running_cyrus
from tests.servers.dovecot import PASSWORD, USER, running_dovecot
from tests.servers.odd_imap import CAPABILITIES, Mail, OddImapServer, bad, default, hang_up, ok, send
from tests.servers.redis import RedisServer

NUMBERS = itertools.count()  # of mailboxes: a Cyrus deletes none twice in a second
TRACKING = {"imap_track_labels": True, "imap_poll_seconds": 3_600}


class Followed:
    """A mailbox of four letters that are delivered, with a watcher's connection and the owner's beside it."""

    def __init__(self, world: World, owner: imapclient.IMAPClient) -> None:
        self.world = world
        self.owner = owner
        self.mailbox = world.account.imap_mailbox
        owner.create_folder(self.mailbox)
        owner.select_folder(self.mailbox)
        for number in range(4):
            self.append(number)
        self.fetch()

    def append(self, number: int) -> None:
        self.owner.append(self.mailbox, letter(number))

    def fetch(self) -> None:
        self.world.sync()
        self.world.work()

    @contextmanager
    def session(self) -> Iterator[tuple[ImapMailbox, Callable[[], None]]]:
        """A watcher's connection, and what makes a round on it."""
        with closing(opened(self.world)) as connection:
            mailbox = connection.examine(connection.find_mailbox(self.mailbox))
            yield connection, lambda: one_round(self.world, connection, mailbox)

    def look(self) -> None:
        """One round on a connection of its own."""
        with self.session() as (_, look):
            look()

    def delete(self, *subjects: int) -> None:
        for number in subjects:
            self.owner.delete_messages(self.owner.search(["SUBJECT", f"letter {number}"]))
        self.owner.expunge()

    def told(self) -> list[tuple[str, str]]:
        """What the feed tells beside births and flags."""
        subjects = dict(self.world.sql("SELECT email_id, subject FROM emails"))
        changes = self.world.ledger().changes.read(0).changes
        quiet = {"born", "flagged", "trashed"}
        return [(each.kind.value, subjects[each.email_id]) for each in changes if each.kind.value not in quiet]


def opened(world: World) -> ImapMailbox:
    connection = log_in(world.account, 10.0)
    connection.follow_deletions()
    return connection


def one_round(world: World, connection: ImapMailbox, mailbox: SelectedMailbox) -> None:
    steps = world.source().labels(connection, mailbox).steps(lambda _size: 0.0)
    while not next(steps):
        pass


@pytest.fixture(params=["dovecot", "cyrus"], scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[tuple[int, str, str]]:
    if request.param == "cyrus":
        with running_cyrus(prefix=False) as running:
            yield running.imap_port, cyrus_server.USER, cyrus_server.PASSWORD
    else:
        with running_dovecot() as running:
            yield running.imap_port, USER, PASSWORD


@pytest.fixture
def followed(tmp_path: Path, redis_server: RedisServer, server: tuple[int, str, str]) -> Iterator[Followed]:
    port, user, password = server
    with imapclient.IMAPClient("127.0.0.1", port, ssl=False) as owner:
        owner.login(user, password)
        values = {"imap_mailbox": f"Followed{next(NUMBERS)}", "imap_user": user, "imap_password": password}
        yield Followed(World(tmp_path, redis_server, port, {**values, **TRACKING}), owner)


def test_a_deletion_is_told_at_the_next_look_once_and_the_others_stay(followed: Followed):
    followed.look()
    followed.delete(1, 3)  # the last one too
    followed.look()
    assert sorted(followed.told()) == [("deleted", "letter 1"), ("deleted", "letter 3")]
    followed.look()
    followed.look()
    followed.world.reconcile()
    assert len(followed.told()) == 2


def test_within_one_session_too_in_which_the_server_says_it_in_passing(followed: Followed):
    with followed.session() as (connection, look):
        look()
        assert connection.exists == 4
        followed.delete(0)
        started = time.monotonic()
        connection.wait(120)  # the IDLE ends by it
        assert time.monotonic() - started < 110
        assert connection.exists == 3
        followed.delete(2)
        look()
    assert sorted(followed.told()) == [("deleted", "letter 0"), ("deleted", "letter 2")]


def test_what_is_deleted_before_it_is_recorded_is_told_after_it_was(followed: Followed):
    followed.look()
    followed.append(7)
    followed.world.sync()
    followed.delete(7)
    for _ in range(4):
        followed.look()
    followed.world.work()
    assert followed.told() == []
    followed.look()
    assert followed.told() == [("deleted", "letter 7")]


def test_a_message_that_was_moved_is_not_deleted(followed: Followed):
    followed.look()
    (uid,) = followed.owner.search(["SUBJECT", "letter 2"])
    followed.owner.copy([uid], followed.mailbox)
    followed.owner.delete_messages([uid])
    followed.owner.expunge()
    followed.look()  # the copy is not fetched yet
    followed.world.sync()
    followed.look()  # nor recorded
    followed.world.work()
    followed.look()
    followed.look()
    assert followed.told() == []
    followed.delete(2)
    followed.look()
    assert followed.told() == [("deleted", "letter 2")]


def test_one_of_two_copies_that_came_together_is_not_the_message(followed: Followed):
    followed.append(8)
    followed.append(8)
    followed.fetch()
    followed.look()
    for expected in ([], [("deleted", "letter 8")]):
        followed.owner.delete_messages(followed.owner.search(["SUBJECT", "letter 8"])[:1])
        followed.owner.expunge()
        followed.look()
        assert followed.told() == expected


class TwoMailboxes:
    """The mailbox of `Followed` and a second one of the account that is read too."""

    def __init__(self, followed: Followed) -> None:
        first, other = followed.world, f"{followed.mailbox}-archive"
        followed.owner.create_folder(other)
        changes = {**first.changes, "imap_mailbox": other}
        first.others = (other,)
        self.second = World(first.folder, first.redis, first.port, changes, others=(followed.mailbox,))
        self.second.sync()
        self.followed = followed
        self.worlds = (first, self.second)
        self.look()

    def move(self, subject: int, *, back: bool = False) -> None:
        there, here = self.second.account.imap_mailbox, self.followed.mailbox
        source, target = (there, here) if back else (here, there)
        owner = self.followed.owner
        owner.select_folder(source)
        owner.move(owner.search(["SUBJECT", f"letter {subject}"]), target)

    def delete(self, subject: int) -> None:
        self.followed.owner.select_folder(self.second.account.imap_mailbox)
        self.followed.delete(subject)

    def look(self) -> None:
        for world in self.worlds:
            self.look_at(world)

    def look_at(self, world: World) -> None:
        with closing(opened(world)) as connection:
            one_round(world, connection, connection.examine(connection.find_mailbox(world.account.imap_mailbox)))

    def compare(self) -> None:
        for world in self.worlds:
            world.reconcile()


@pytest.fixture
def two(followed: Followed) -> TwoMailboxes:
    return TwoMailboxes(followed)


@pytest.mark.parametrize("by", ["look", "compare"])
def test_what_is_moved_to_a_mailbox_that_is_read_is_not_deleted_and_there_it_is(two: TwoMailboxes, by: str):
    look = getattr(two, by)
    two.move(2)
    look()  # it is not fetched there yet
    two.second.sync()
    for _ in range(2):
        look()
    two.compare()
    assert two.followed.told() == []
    two.delete(2)
    look()
    two.compare()
    assert two.followed.told() == [("deleted", "letter 2")]


def test_what_was_moved_to_and_fro_lies_where_it_lies_last(two: TwoMailboxes):
    for back in (False, True, False):
        two.move(1, back=back)
        for world in two.worlds:
            world.sync()
    two.look()
    two.compare()
    assert two.followed.told() == []
    two.delete(1)
    two.look()
    assert two.followed.told() == [("deleted", "letter 1")]


def test_while_the_other_mailbox_cannot_be_opened_nothing_is_deleted(two: TwoMailboxes):
    two.move(3)
    (other,) = two.worlds[0].others
    two.followed.owner.unselect_folder()
    two.followed.owner.rename_folder(other, f"{other}-old")
    two.look_at(two.worlds[0])
    two.worlds[0].reconcile()
    assert two.followed.told() == []


def test_of_a_mailbox_that_was_replaced_nothing_is_deleted(followed: Followed):
    followed.look()
    followed.owner.unselect_folder()
    followed.owner.delete_folder(followed.mailbox)
    followed.owner.create_folder(followed.mailbox)
    followed.owner.select_folder(followed.mailbox)
    followed.fetch()
    followed.look()
    followed.look()
    assert followed.told() == []


def test_an_emptied_mailbox_is_left_to_the_comparison_of_all(followed: Followed, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vanished_mail, "MIN_LIMIT", 2)
    followed.look()
    followed.delete(0, 1, 2)
    followed.look()
    followed.look()
    assert followed.told() == []
    followed.world.reconcile()
    assert len(followed.told()) == 3


class Odd:
    """A scripted server that says it had QRESYNC, with four letters that are delivered and a MODSEQ in memory."""

    def __init__(self, folder: Path, redis: RedisServer, server: OddImapServer) -> None:
        self.server = server
        self.world = World(folder, redis, server.port, TRACKING)
        self.world.sync()
        self.world.work()
        self.look()

    def look(self, times: int = 1) -> None:
        with closing(opened(self.world)) as connection:
            mailbox = connection.examine("INBOX")
            for _ in range(times):
                one_round(self.world, connection, mailbox)

    def told(self) -> list[str]:
        return [each.kind.value for each in self.world.ledger().changes.read(0).changes if each.kind.value != "born"]


@pytest.fixture
def odd(tmp_path: Path, redis_server: RedisServer) -> Iterator[Odd]:
    mail = [Mail(letter(number), uid=number + 1) for number in range(4)]
    server = OddImapServer(mail, capabilities=f"{CAPABILITIES} CONDSTORE QRESYNC")
    server.on("ENABLE", send("* ENABLED CONDSTORE QRESYNC\r\n"), default)
    server.on("EXAMINE", send("* OK [HIGHESTMODSEQ 9] highest\r\n"), default)
    server.on("STATUS", send('* STATUS "INBOX" (HIGHESTMODSEQ 9)\r\n'), ok("done"))
    server.on("UID FETCH", ok("nothing changed"), containing="CHANGEDSINCE")
    with server:
        yield Odd(tmp_path, redis_server, server)


def vanishes(*lines: str) -> tuple[Any, ...]:
    return (*(send(f"* {line}\r\n") for line in lines), ok("done"))


@pytest.mark.parametrize(
    "lines",
    [
        ["VANISHED (EARLIER) 1:4294967295"],
        ["VANISHED (EARLIER) 2", "2 FETCH (UID 2 FLAGS (\\Seen) MODSEQ (12))"],
        ["VANISHED 3"],
        ["VANISHED (EARLIER) 900:1000,70000"],
        ["VANISHED (EARLIER) 5:*,x,99999999999999999999,:,", "VANISHED", "VANISHED ()"],
    ],
    ids=["everything", "and its flags", "in passing", "unknown ones", "no numbers"],
)
def test_what_the_server_still_lists_is_not_deleted_whatever_it_says(odd: Odd, lines: list[str]):
    odd.server.on("UID FETCH", *vanishes(*lines), containing="VANISHED")
    odd.look(times=4)
    assert "deleted" not in odd.told()
    del odd.server.inbox.mail[1]
    odd.world.reconcile()
    assert odd.told().count("deleted") == 1


def test_a_range_of_billions_costs_nothing_and_names_what_is_gone(odd: Odd):
    gone = odd.server.inbox.mail.pop(2)
    odd.server.on("UID FETCH", *vanishes(f"VANISHED (EARLIER) {gone.uid},5:4294967295"), containing="VANISHED")
    odd.look()
    assert odd.told() == ["deleted"]


def test_a_mailbox_whose_uidvalidity_changed_meanwhile_ends_the_session(odd: Odd):
    odd.server.on("UID FETCH", *vanishes("VANISHED (EARLIER) 1:4"), containing="VANISHED")
    with closing(opened(odd.world)) as connection:
        mailbox = connection.examine("INBOX")
        odd.server.inbox.uidvalidity = 777
        odd.server.inbox.mail.clear()
        with pytest.raises(SessionExpired, match="replaced"):
            one_round(odd.world, connection, mailbox)
    assert odd.told() == []


def test_after_the_modseq_went_back_nobody_is_asked_what_was_deleted(odd: Odd):
    odd.server.inbox.mail.clear()
    odd.server.on("UID FETCH", *vanishes("VANISHED (EARLIER) 1:4"), containing="VANISHED")
    for name, line in {
        "EXAMINE": "* OK [HIGHESTMODSEQ 3] highest",
        "STATUS": '* STATUS "INBOX" (HIGHESTMODSEQ 3)',
    }.items():
        odd.server.on(name, send(f"{line}\r\n"), default)
    odd.look()
    assert odd.told() == []


@pytest.mark.parametrize("refusal", [[bad("no such thing")], [ok("fine")]], ids=["BAD", "not enabled"])
def test_a_server_that_does_not_enable_it_is_not_asked(odd: Odd, refusal: list[Any]):
    odd.server.on("ENABLE", *refusal)
    before = len(odd.server.commands)
    odd.look()
    asked = [each.arguments for each in odd.server.commands[before:] if b"CHANGEDSINCE" in each.arguments]
    assert asked
    assert not any(b"VANISHED" in each for each in asked)


def test_a_server_that_refuses_the_question_is_asked_for_flags_alone(odd: Odd):
    odd.server.on("UID FETCH", bad("Unknown FETCH modifier VANISHED"), containing="VANISHED")
    flags = send("* 1 FETCH (UID 1 FLAGS (\\Flagged) MODSEQ (12))\r\n")
    odd.server.on("UID FETCH", flags, ok("done"), containing="(FLAGS) (CHANGEDSINCE 9)")
    with closing(opened(odd.world)) as connection:
        mailbox = connection.examine("INBOX")
        one_round(odd.world, connection, mailbox)
        assert list(connection.refused) == ["QRESYNC"]
    assert odd.told() == ["flagged"]


def test_a_server_that_hangs_up_over_it_is_named_by_it(odd: Odd):
    odd.server.on("UID FETCH", hang_up, containing="VANISHED")
    with closing(opened(odd.world)) as connection:
        mailbox = connection.examine("INBOX")
        with pytest.raises(Exception, match="IMAP server"):
            one_round(odd.world, connection, mailbox)
        assert connection.attempting == "QRESYNC"
