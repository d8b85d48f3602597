"""Mailboxes about which a server is wrong or silent: their numbers, their names, and what is refused of them."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from email_ingestion.events import CommandsRefused, ConnectionFailed, NeedsOperator, Reconciled, SessionEnded, Synced
from tests.integration.odd_servers.conftest import OddWatched, RunWatched
from tests.servers.odd_conversation import Command, Conversation
from tests.servers.odd_imap import Folder, Mail, OddImapServer, default, hang_up, no, ok, send

OLD = {uid: b"Subject: %d\r\nMessage-ID: <%d@example.com>\r\n\r\nhello %d\r\n" % (uid, uid, uid) for uid in (1, 2)}
NEW = b"Subject: new\r\n\r\nhello\r\n"


def mail() -> list[Mail]:
    return [Mail(raw, uid=uid) for uid, raw in OLD.items()]


def has_synced(subject: OddWatched) -> None:
    subject.until(lambda: any(event.listed_ago is not None for event in subject.heard.of(Synced)), "it has synced")


def examined_with(*lines: str) -> Callable[[Conversation, Command], None]:
    def answer(conversation: Conversation, command: Command) -> None:
        conversation.folder = conversation.server.inbox
        conversation.send("".join(f"* {line}\r\n" for line in lines).encode())
        conversation.end(command, "OK [READ-ONLY] open")

    return answer


NUMBERS = {
    "UIDNEXT beyond all UIDs": ("2 EXISTS", "OK [UIDVALIDITY 1]", "OK [UIDNEXT 4294967295]"),
    "UIDNEXT below the UIDs": ("2 EXISTS", "OK [UIDVALIDITY 1]", "OK [UIDNEXT 1]"),
    "UIDVALIDITY 0": ("2 EXISTS", "OK [UIDVALIDITY 0]", "OK [UIDNEXT 3]"),
    "UIDVALIDITY of 40 bits": ("2 EXISTS", "OK [UIDVALIDITY 1099511627776]", "OK [UIDNEXT 3]"),
    "EXISTS 0": ("0 EXISTS", "OK [UIDVALIDITY 1]", "OK [UIDNEXT 3]"),
    "EXISTS a million": ("1000000 EXISTS", "OK [UIDVALIDITY 1]", "OK [UIDNEXT 3]"),
    "nothing of it": (),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_wrong_numbers_of_a_mailbox_keep_no_mail_out(watched: RunWatched, name: str):
    server = OddImapServer(mail())
    server.on("EXAMINE", examined_with(*NUMBERS[name]))
    subject = watched(server)
    subject.holds(*OLD.values())
    has_synced(subject)
    server.deliver(NEW)
    subject.holds(*OLD.values(), NEW)
    assert subject.heard.of(ConnectionFailed) == subject.heard.of(NeedsOperator) == []
    assert not any(event.missing for event in subject.heard.of(Reconciled))  # nothing had to be found by comparing


def test_new_mail_alone_is_taken_where_uidnext_is_beyond_it(watched: RunWatched):
    server = OddImapServer(mail())
    server.inbox.uidnext = 1_000_000
    subject = watched(server, imap_start="now")
    has_synced(subject)
    server.deliver(NEW)
    subject.holds(NEW)


@pytest.mark.parametrize("words", ["BAD [CLIENTBUG] Invalid messageset", "NO No matching messages"])
@pytest.mark.parametrize("letters", [OLD, {}], ids=["some", "empty"])
def test_a_search_that_can_find_nothing_may_be_refused(watched: RunWatched, words: str, letters: dict[int, bytes]):
    server = OddImapServer([Mail(raw, uid=uid) for uid, raw in letters.items()])

    def refuse_above(conversation: Conversation, command: Command) -> None:
        first = re.match(rb"UID (\d+):\*", command.arguments)
        newest = max((each.uid for each in server.inbox.mail), default=0)
        if not newest or (first and int(first[1]) > newest):
            conversation.end(command, words)
        else:
            conversation.answer(command)

    server.on("UID SEARCH", refuse_above)
    subject = watched(server)
    subject.holds(*letters.values())
    has_synced(subject)
    server.deliver(NEW)
    subject.holds(*letters.values(), NEW)
    assert subject.heard.of(ConnectionFailed) == subject.heard.of(NeedsOperator) == []


SEARCHES = {
    "refused": (no("No such thing"),),
    "broken": (no("[SERVERBUG] Internal server error"),),
    "blind": (send("* SEARCH"), ok("done")),
    "without an answer": (ok("done"),),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_server_that_cannot_search_is_asked_by_fetch_for_the_uids(watched: RunWatched, name: str):
    """So does a Strato: STATUS tells of 21 messages, and SEARCH finds none."""
    server = OddImapServer(mail())
    server.on("UID SEARCH", *SEARCHES[name])
    subject = watched(server)
    subject.holds(*OLD.values())
    has_synced(subject)
    server.deliver(NEW)
    subject.holds(*OLD.values(), NEW)
    told = subject.hears(CommandsRefused)
    assert told.commands == ("SEARCH",)
    assert "finds nothing" in told.reasons or "No such thing" in told.reasons or "SERVERBUG" in told.reasons
    assert subject.heard.of(ConnectionFailed) == []


def test_a_server_that_does_not_find_new_mail_alone_is_asked_by_fetch(watched: RunWatched):
    server = OddImapServer(mail())
    server.on("UID SEARCH", send("* SEARCH 1 2"), ok("done"))
    subject = watched(server)
    subject.holds(*OLD.values())
    has_synced(subject)
    server.deliver(NEW)
    subject.holds(*OLD.values(), NEW)


def test_a_search_that_is_refused_like_everything_is_told_in_the_servers_words(watched: RunWatched):
    server = OddImapServer(mail())
    server.on("UID SEARCH", no("No such thing"))
    server.on("UID FETCH", no("Nor that"))
    subject = watched(server)
    assert '"No such thing"' in str(subject.hears(ConnectionFailed).error)


def test_a_server_that_cannot_search_now_is_not_taken_for_one_without_new_mail(watched: RunWatched):
    server = OddImapServer(mail())
    subject = watched(server)
    subject.holds(*OLD.values())
    server.on("UID SEARCH", no("[UNAVAILABLE] Try again"), times=1)
    subject.hears(ConnectionFailed)


def test_a_status_that_contradicts_examine_ends_no_session(watched: RunWatched):
    server = OddImapServer(mail())
    server.on("STATUS", send('* STATUS "INBOX" (UIDVALIDITY 77 UIDNEXT 9)'), ok("STATUS done"))
    subject = watched(server)
    subject.holds(*OLD.values())
    subject.until(lambda: server.count("EXAMINE") > 2, "it has looked whether the mailbox is the same")
    server.deliver(NEW)
    subject.holds(*OLD.values(), NEW)
    assert len(server.logins) == 1
    assert subject.heard.of(SessionEnded) == []


LISTS = {
    "refused": ("Archive", (no("no wildcards here"),), (no("no wildcards here"),)),
    "without the name": ("Shared/Box", (send('* LIST () "/" "INBOX"'), ok("done")), (default,)),
    "without it in any": ("Größe", (send('* LIST () "/" "INBOX"'), ok("done")), (no("hidden"),)),
    "a delimiter at its end": ("Archive", (send('* LIST () "/" "Archive/"'), ok("done")), (default,)),
    "a backslash as delimiter": ("Archive", (send(r'* LIST () "\\" "Archive\\"'), ok("done")), (default,)),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_mailbox_is_found_by_its_name_however_it_is_listed(watched: RunWatched, name: str):
    setting, answers, by_name = LISTS[name]
    server = OddImapServer()
    server.folders["Gr&APYA3w-e" if setting == "Größe" else setting] = Folder(mail())
    server.on("LIST", *by_name)
    server.on("LIST", *answers, containing='"*"')
    subject = watched(server, imap_mailbox=setting)
    subject.holds(*OLD.values())
    assert subject.heard.of(NeedsOperator) == []


def test_a_mailbox_that_is_nowhere_is_told_with_those_that_there_are(watched: RunWatched):
    server = OddImapServer()
    server.folders["Sent"] = Folder()
    server.on("LIST", send('* LIST () "/" "INBOX"', '* LIST () "/" "Sent"'), ok("done"), containing='"*"')
    server.on("LIST", ok("done"), containing='"Archive"')
    subject = watched(server, imap_mailbox="Archive")
    assert "there are: INBOX, Sent" in str(subject.hears(NeedsOperator).error)


def test_a_bye_during_idle_costs_a_session_and_no_mail(watched: RunWatched):
    server = OddImapServer(mail())
    server.chatter = b"* BYE Session timed out, please log in again\r\n"
    subject = watched(server)
    subject.holds(*OLD.values())
    subject.until(lambda: len(server.logins) > 1, "it is back")
    server.chatter = b""
    server.deliver(NEW)
    subject.holds(*OLD.values(), NEW)


QRESYNC = "IMAP4rev1 ENABLE IDLE AUTH=PLAIN CONDSTORE QRESYNC"


def with_qresync() -> OddImapServer:
    server = OddImapServer(mail(), capabilities=QRESYNC)
    server.on("ENABLE", send("* ENABLED QRESYNC\r\n"), default)
    server.on("EXAMINE", send("* OK [HIGHESTMODSEQ 9]\r\n"), default)
    server.on("UID FETCH", ok("nothing changed"), containing="CHANGEDSINCE")
    return server


def asks(server: OddImapServer, words: bytes, connection: int = 1) -> bool:
    return any(words in each.arguments and each.connection >= connection for each in server.commands)


def test_a_server_is_asked_what_was_deleted_where_labels_are_followed(watched: RunWatched):
    server = with_qresync()
    subject = watched(server, imap_track_labels=True, imap_poll_seconds=0.2)
    subject.holds(*OLD.values())
    subject.until(lambda: asks(server, b"(FLAGS) (CHANGEDSINCE 9 VANISHED)"), "it asks")
    server.deliver(NEW)
    subject.holds(*OLD.values(), NEW)
    assert subject.heard.of(ConnectionFailed) == []


def test_a_server_that_hangs_up_over_the_question_is_soon_not_asked_it(watched: RunWatched):
    server = with_qresync()
    server.on("UID FETCH", hang_up, containing="VANISHED")
    subject = watched(server, imap_track_labels=True, imap_poll_seconds=0.2)
    subject.until(lambda: asks(server, b"(FLAGS) (CHANGEDSINCE 9)", connection=3), "it asks for flags alone")
    assert server.count("ENABLE") == 2
    server.deliver(NEW)
    subject.holds(*OLD.values(), NEW)


def test_nobody_enables_it_who_does_not_follow_labels(watched: RunWatched):
    server = with_qresync()
    subject = watched(server)
    subject.holds(*OLD.values())
    has_synced(subject)
    assert server.count("ENABLE") == 0
