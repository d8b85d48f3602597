"""Conversations that no RFC has, in one server each: whatever can be read is read."""

from __future__ import annotations

import base64

import pytest

from email_ingestion.errors import IMAPConnectionError
from email_ingestion.events import CommandsRefused, ConnectionFailed, NeedsOperator, Quarantined
from email_ingestion.mailbox import metered_imap4
from tests.integration.odd_servers.conftest import RunWatched
from tests.servers.odd_conversation import Command, Conversation
from tests.servers.odd_imap import Mail, OddImapServer, bad, default, hang, ok, send, trickle
from tests.servers.odd_mail import literal

LETTERS = {uid: b"Subject: %d\r\n\r\nhello %d\r\n" % (uid, uid) for uid in (1, 2, 2**33)}
NEW = b"Subject: new\r\n\r\nhello\r\n"


def mail() -> list[Mail]:
    return [Mail(raw, uid=uid) for uid, raw in LETTERS.items()]


def asked_for(conversation: Conversation, command: Command) -> None:
    """Answer UID FETCH with what was asked for, without a UID that was not."""
    items = command.arguments.partition(b" ")[2]
    for number, each in enumerate(conversation.server.inbox.mail, 1):
        if each.uid in command.uids:
            conversation.send(each.response(number, items, uid=False))
    conversation.end(command, "OK done")


def with_text_as_challenge(conversation: Conversation, command: Command) -> None:
    conversation.send(b"+ go on\r\n")
    _, user, password = base64.b64decode(conversation._read_line()).split(b"\0")
    conversation._log_in(command, user, password)


def nothing_found(conversation: Conversation, command: Command) -> None:
    low = command.arguments.removeprefix(b"UID ").partition(b":")[0]
    if low.isdigit() and int(low) > conversation.server.inbox.mail[-1].uid:
        conversation.send(b"* SEARCH NIL\r\n")
        conversation.end(command, "OK done")
    else:
        conversation.answer(command)


def opened(conversation: Conversation, command: Command) -> None:
    conversation.folder = conversation.server.inbox
    conversation.send(b"* 3 exists\r\n* ok [uidvalidity 5] x\r\n* ok  [ uidnext 4 ]\r\n")
    conversation.end(command, "ok [read-only] open")


def test_a_server_that_is_odd_in_every_command(watched: RunWatched):
    """Also one that counts UIDs in 64 bits, and prints what its own parts say between its answers."""
    server = OddImapServer(mail())
    server.capabilities = "IMAP4rev1 IDLE AUTH=PLAIN LOGINDISABLED X-\xe4"
    server.on("AUTHENTICATE", with_text_as_challenge)
    server.on("EXAMINE", opened)
    server.on("STATUS", bad("what"))
    server.on("UID SEARCH", nothing_found)
    server.on("UID FETCH", asked_for)
    for command in ("CAPABILITY", "EXAMINE", "UID SEARCH", "UID FETCH"):
        server.on(command, send("PHP Warning: something in /srv/imap.php on line 5"), *(each(server, command)))
    subject = watched(server)
    subject.holds(*LETTERS.values())
    server.deliver(NEW)
    subject.holds(*LETTERS.values(), NEW)
    assert len(server.logins) == 1
    assert subject.heard.of(ConnectionFailed) == []


def each(server: OddImapServer, command: str) -> list:
    """What the rules so far answer to a command, or a sane server would."""
    return next((list(rule.replies) for rule in server._rules if rule.command == command), [default])


@pytest.mark.parametrize("told", ["* CAPABILITY", "* CAPABILITY {4}\r\nIDLE", "* OK nothing"])
def test_a_server_that_tells_no_capabilities_is_taken_for_one_of_imap4rev1(watched: RunWatched, told: str):
    server = OddImapServer(mail())
    server.on("CAPABILITY", send(told), ok())
    watched(server).holds(*LETTERS.values())


def test_capabilities_of_the_greeting_count_where_the_command_is_refused(watched: RunWatched):
    server = OddImapServer(mail())
    server.greeting = b"* OK [CAPABILITY IMAP4rev1 IDLE AUTH=PLAIN LOGINDISABLED] ready\r\n"
    server.on("CAPABILITY", bad("unknown"))
    watched(server).holds(*LETTERS.values())
    assert server.count("LOGIN") == 0


def test_items_behind_the_end_of_a_response_are_left_out(watched: RunWatched):
    server = OddImapServer(mail())
    for one in server.inbox.mail:
        one.items = {"BODY[]": lambda _offset, _size, one=one: b"BODY[] " + literal(one.raw) + b")\r\n FLAGS (x"}
    subject = watched(server)
    subject.holds(*LETTERS.values())
    assert subject.heard.of(Quarantined) == []


@pytest.mark.parametrize("length", [-5, 6])
def test_a_literal_of_another_length_than_announced_is_no_body(watched: RunWatched, length: int):
    """Also where RFC822.SIZE has the same number: the rest of the message, or of the response, tells."""
    size = len(LETTERS[1]) + length
    server = OddImapServer(mail())
    server.inbox.mail[0].size = size
    server.inbox.mail[0].items = {"BODY[]": lambda _offset, _size: b"BODY[] {%d}\r\n" % size + LETTERS[1]}
    subject = watched(server)
    assert "another length than announced" in str(subject.hears(Quarantined).error)
    subject.holds(*list(LETTERS.values())[1:])
    assert "hello" not in str(subject.heard.events)


def test_a_refusal_in_the_place_of_a_greeting_is_told_in_its_words_and_passes(watched: RunWatched):
    server = OddImapServer(mail())
    server.greeting = b" NO LOGOUT Not now\r\n"
    subject = watched(server)
    assert 'the server says "LOGOUT Not now"' in str(subject.hears(ConnectionFailed).error)
    server.greeting = b"* OK ready\r\n"
    subject.holds(*LETTERS.values())
    assert subject.heard.of(NeedsOperator) == []


@pytest.mark.parametrize("where", ["greeting", "CAPABILITY", "LOGIN"])
def test_a_server_that_trickles_until_the_login_is_given_up(
    watched: RunWatched, where: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(metered_imap4, "GREETING_SECONDS", 0.5)
    monkeypatch.setattr("email_ingestion.mailbox.imap_connection.LOGIN_SECONDS", 0.5)
    server = OddImapServer(mail())
    slowly = trickle("* OK " + "a" * 10_000, every=0.1)
    rule = server.on("CAPABILITY" if where == "greeting" else where, slowly, times=2)
    if where == "greeting":
        rule.end()
        server.greeting = None
    subject = watched(server)
    error = subject.hears(ConnectionFailed).error
    assert type(error) is IMAPConnectionError
    assert "takes too long" in str(error) or where == "greeting"
    server.greeting = b"* OK ready\r\n"
    subject.holds(*LETTERS.values())


def test_a_server_that_never_answers_idle_is_soon_polled(watched: RunWatched, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("email_ingestion.mailbox.waiting.IDLE_BEGIN_SECONDS", 0.3)
    server = OddImapServer(mail())
    server.on("IDLE", hang)
    subject = watched(server)
    subject.until(lambda: server.count("IDLE"), "it waits")
    server.deliver(NEW)
    subject.holds(*LETTERS.values(), NEW)
    subject.until(lambda: any("IDLE" in each.commands for each in subject.heard.of(CommandsRefused)), "it polls")
    assert server.count("IDLE") == 2
