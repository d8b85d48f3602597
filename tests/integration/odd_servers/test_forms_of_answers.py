"""Answers in another form: names, literals, line ends and spaces that no RFC has, and those of IMAP4rev2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from email_ingestion.events import CommandsRefused, ConnectionFailed, Quarantined
from tests.integration.odd_servers.conftest import RunWatched
from tests.servers.odd_conversation import Command, Conversation
from tests.servers.odd_imap import Mail, OddImapServer, default, ok, send, send_raw
from tests.servers.odd_mail import literal

LETTERS = {
    uid: b"Subject: %d\r\nMessage-ID: <%d@example.com>\r\n\r\nhello %d\r\n" % (uid, uid, uid) for uid in (1, 2, 3)
}
LAST = b"Subject: last\r\n\r\nof all\r\n"
MIB = 1024 * 1024

Form = Callable[[int, bytes], bytes]
BODIES: dict[str, Form] = {
    "the name that was asked for": lambda uid, raw: b"(UID %d BODY.PEEK[] %b)" % (uid, literal(raw)),
    "the name of IMAP2": lambda uid, raw: b"(UID %d RFC822 %b)" % (uid, literal(raw)),
    "a part that is the whole": lambda uid, raw: b"(UID %d BODY[]<0> %b)" % (uid, literal(raw)),
    "small letters": lambda uid, raw: b"(uid %d body[] %b)" % (uid, literal(raw)),
    "the UID behind it": lambda uid, raw: b"(BODY[] %b UID %d)" % (literal(raw), uid),
    "flags behind it": lambda uid, raw: rb"(UID %d BODY[] %b FLAGS (\Seen $x))" % (uid, literal(raw)),
    "a literal with a plus": lambda uid, raw: b"(UID %d BODY[] {%d+}\r\n%b)" % (uid, len(raw), raw),
    "a literal with a tilde": lambda uid, raw: b"(UID %d BODY[] ~{%d}\r\n%b)" % (uid, len(raw), raw),
    "an empty line behind the literal": lambda uid, raw: b"(UID %d BODY[] %b\r\n)" % (uid, literal(raw)),
    "an empty line behind it": lambda uid, raw: b"(UID %d BODY[] %b)\r\n" % (uid, literal(raw)),
    "two spaces": lambda uid, raw: b" (UID %d BODY[] %b)" % (uid, literal(raw)),
    "a line end without CR": lambda uid, raw: b"(UID %d BODY[] {%d}\n%b)" % (uid, len(raw), raw),
}
SEARCHES: dict[str, Callable[[list[int], bytes], bytes]] = {
    "a set": lambda uids, tag: (
        b'* ESEARCH (TAG "%b") UID%b\r\n' % (tag, b" ALL " + _joined(uids, b",") if uids else b"")
    ),
    "a range": lambda uids, _: b"* ESEARCH UID MIN 1 ALL %d:%d COUNT 3\r\n" % (uids[0], uids[-1]) if uids else b"",
    "commas": lambda uids, _: b"* SEARCH %b\r\n" % _joined(uids, b","),
    "spaces": lambda uids, _: b"* SEARCH  %b \r\n" % _joined(uids, b"  "),
    "a line for each": lambda uids, _: b"".join(b"* SEARCH %d\r\n" % uid for uid in uids),
    "twice, and backwards": lambda uids, _: b"* SEARCH %b %b\r\n" % (_joined(uids[::-1], b" "), _joined(uids, b" ")),
    "a line end without CR": lambda uids, _: b"* SEARCH %b\n" % _joined(uids, b" "),
}
GREETINGS = {"small": b"* ok ready\r\n", "bare": b"* OK\r\n", "late": b"\r\n* OK ready\r\n", "LF": b"* OK ready\n"}


def _joined(uids: list[int], between: bytes) -> bytes:
    return between.join(b"%d" % uid for uid in uids)


def mail() -> list[Mail]:
    return [Mail(raw, uid=uid) for uid, raw in LETTERS.items()]


@pytest.mark.parametrize("name", BODIES)
def test_a_body_is_read_in_whatever_form_it_comes(watched: RunWatched, name: str):
    server = OddImapServer(mail())

    def answer(conversation: Conversation, command: Command) -> None:
        for uid in sorted(LETTERS.keys() & set(command.uids)):
            conversation.send(b"* %d FETCH %b\r\n" % (uid, BODIES[name](uid, LETTERS[uid])))
        conversation.end(command, "OK FETCH done")

    server.on("UID FETCH", answer, containing="BODY.PEEK[]")
    subject = watched(server)
    subject.holds(*LETTERS.values())
    assert subject.heard.of(ConnectionFailed) == subject.heard.of(Quarantined) == []


@pytest.mark.parametrize("echoed", [b"BODY[]<%d.%d>", b"BODY.PEEK[]<%d.%d>"])
def test_a_part_may_be_named_as_in_the_question(watched: RunWatched, echoed: bytes):
    raw = b"Subject: large\r\n\r\n" + b"0123456789abcde\r\n" * (MIB // 16)

    def part(offset: int | None, size: int | None) -> bytes:
        assert offset is not None
        assert size is not None
        return echoed % (offset, size) + b" " + literal(raw[offset : offset + size])

    subject = watched(OddImapServer([Mail(raw, items={"BODY[]": part})]))
    subject.holds(raw)
    assert subject.heard.of(Quarantined) == []


@pytest.mark.parametrize("value", [b"~{x}", b"hello", b"(hello)", b"{12"])
def test_what_is_no_string_is_no_body(watched: RunWatched, value: bytes):
    server = OddImapServer([Mail(LETTERS[1], uid=1, items={"BODY[]": value}), Mail(LETTERS[2], uid=2)])
    subject = watched(server)
    subject.hears(Quarantined)
    subject.holds(LETTERS[2])


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_is_read_in_whatever_form_it_comes(watched: RunWatched, name: str):
    server = OddImapServer(mail())

    def answer(conversation: Conversation, command: Command) -> None:
        uids = [
            mail.uid for mail in server.inbox.mail if b"UID" not in command.arguments or mail.uid in _asked(command)
        ]
        conversation.send(SEARCHES[name](uids, command.tag))
        conversation.end(command, "OK SEARCH done")

    server.on("UID SEARCH", answer)
    subject = watched(server)
    subject.holds(*LETTERS.values())
    server.deliver(LAST)
    subject.holds(*LETTERS.values(), LAST)
    assert subject.heard.of(ConnectionFailed) == []


def _asked(command: Command) -> Any:
    low, _, high = command.arguments.removeprefix(b"UID ").partition(b":")
    return range(1, 100) if low == b"*" else range(int(low), 100 if high in {b"", b"*"} else int(high) + 1)


def test_a_range_of_billions_is_not_counted_out(watched: RunWatched):
    server = OddImapServer(mail())
    server.on("UID SEARCH", send("* ESEARCH UID ALL 1:4294967295"), ok("SEARCH done"))
    subject = watched(server)
    subject.holds(*LETTERS.values())  # by FETCH
    assert "more than 1,000,000 messages" in subject.hears(CommandsRefused).reasons


def test_empty_lines_and_words_in_passing_change_nothing(watched: RunWatched):
    server = OddImapServer(mail())
    passing = send_raw(
        "\r\n*  3 EXISTS\r\n* NO [ALERT] odd\r\n* BAD odd\r\n* 9 FETCH (FLAGS ())\r\n* VANISHED 9\r\n\r\n"
    )
    for command in ("UID SEARCH", "UID FETCH", "EXAMINE", "NOOP", "LOGIN"):
        server.on(command, passing, default, send_raw("\r\n"))
    server.chatter = b"\r\n\r\n* OK Still here\r\n\r\n"
    subject = watched(server)
    subject.holds(*LETTERS.values())
    server.deliver(LAST)
    subject.holds(*LETTERS.values(), LAST)
    assert subject.heard.of(ConnectionFailed) == []


@pytest.mark.parametrize("name", GREETINGS)
def test_a_greeting_may_look_otherwise(watched: RunWatched, name: str):
    server = OddImapServer(mail())
    server.greeting = GREETINGS[name]
    watched(server).holds(*LETTERS.values())


def test_a_server_of_imap4rev2_alone_is_read(watched: RunWatched):
    server = OddImapServer(mail(), capabilities="IMAP4rev2 AUTH=PLAIN IDLE")
    server.on("UID SEARCH", send('* ESEARCH (TAG "x") UID ALL 1:3'), ok("SEARCH done"))
    watched(server).holds(*LETTERS.values())
