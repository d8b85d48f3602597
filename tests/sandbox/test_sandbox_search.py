"""SEARCH in IMAP's and in Gmail's words."""

from __future__ import annotations

from datetime import date

import pytest

ALL = "[Gmail]/All Mail"

DAY = 86_400_000


@pytest.fixture
def filled(sandbox, client, mail):
    sandbox.deliver(mail(1, "about apples", Subject="Fruit"), ["\\Inbox", "Work/Project x"], ["\\Seen"], 10 * DAY)
    sandbox.deliver(mail(2, "about pears", From="Bo <bo@example.org>"), ["Übung"], [], 20 * DAY)
    sandbox.deliver(mail(3, "x" * 3000, In_Reply_To="<m1@example.net>"), ["\\Inbox", "\\Starred"], [], 30 * DAY)
    client.select_folder(ALL, readonly=True)
    return client


@pytest.mark.parametrize(
    ("criteria", "found"),
    [
        (["ALL"], [1, 2, 3]),
        (["UID", "2:*"], [2, 3]),
        (["UID", "9:*"], [3]),
        (["SEEN"], [1]),
        (["NOT", "SEEN", "UNFLAGGED"], [2]),
        (["FLAGGED"], [3]),
        (["SUBJECT", "fruit"], [1]),
        (["FROM", "bo@"], [2]),
        (["BODY", "pears"], [2]),
        (["TEXT", "example.org"], [2]),
        (["HEADER", "Message-ID", "m3@"], [3]),
        (["HEADER", "In-Reply-To", ""], [3]),
        (["OR", "SEEN", "FLAGGED"], [1, 3]),
        (["LARGER", "2000"], [3]),
        (["SMALLER", "2000"], [1, 2]),
        (["SINCE", date(1970, 1, 21)], [2, 3]),
        (["BEFORE", date(1970, 1, 21)], [1]),
        (["ON", date(1970, 1, 31)], [3]),
        (["X-GM-LABELS", "\\Inbox"], [1, 3]),
        (["X-GM-RAW", "label:work-project-x"], [1]),
        (["X-GM-RAW", "in:inbox is:unread"], [3]),
        (["X-GM-RAW", "-in:inbox"], [2]),
        (["X-GM-RAW", "from:bo pears"], [2]),
        (["X-GM-RAW", '"about apples"'], [1]),
        (["X-GM-RAW", "has:attachment"], []),
        (["X-GM-RAW", "rfc822msgid:m2@example.net"], [2]),
        (["MODSEQ", "3"], [2, 3]),
    ],
)
def test_search(filled, criteria, found):
    assert list(filled.search(criteria)) == found


def test_non_ascii_needs_a_charset_and_comes_as_a_literal(filled, known_wire):
    assert filled.gmail_search("label:Übung") == [2]
    assert filled.search(["X-GM-LABELS", "Übung"], charset="UTF-8") == [2]
    known_wire.run(b'EXAMINE "[Gmail]/All Mail"')
    raw = 'UID SEARCH X-GM-RAW "label:Übung"'.encode()
    assert known_wire.run(raw)[-1] == b"t BAD Could not parse command"
    known_wire.send(b"t UID SEARCH CHARSET UTF-8 X-GM-RAW {12}\r\n")
    assert known_wire.line() == b"+ go ahead"
    known_wire.send("label:Übung\r\n".encode())
    assert known_wire.until(b"t ")[0] == b"* SEARCH 2"
    known_wire.send("t UID SEARCH CHARSET UTF-8 X-GM-RAW {12+}\r\nlabel:Übung\r\n".encode())
    assert known_wire.until(b"t ")[0] == b"* SEARCH 2"


def test_identities_are_searchable(filled, sandbox):
    first, second, third = sandbox.messages()
    assert third.thrid == first.thrid == first.msgid
    assert filled.search(["X-GM-MSGID", str(second.msgid)]) == [2]
    assert filled.search(["X-GM-THRID", str(first.thrid)]) == [1, 3]
    assert filled.search(["NOT", "X-GM-MSGID", str(second.msgid)]) == [1, 3]


def test_extended_search_returns_what_was_asked(filled, known_wire):
    known_wire.run(b'EXAMINE "[Gmail]/All Mail"')
    assert known_wire.run(b"UID SEARCH RETURN (MIN MAX COUNT ALL) ALL")[0] == (
        b'* ESEARCH (TAG "t") UID MIN 1 MAX 3 COUNT 3 ALL 1:3'
    )


def test_unknown_keys_and_charsets_are_refused(filled, known_wire):
    known_wire.run(b"EXAMINE INBOX")
    assert known_wire.run(b"SEARCH NOPE")[-1] == b"t BAD Could not parse command"
    assert b"BADCHARSET" in known_wire.run(b"SEARCH CHARSET KOI8-R ALL")[-1]
