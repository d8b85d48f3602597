"""The fast parser of FETCH responses gives what imapclient gives, or leaves it to imapclient."""

from __future__ import annotations

import pytest
from imapclient.response_parser import parse_fetch_response

from email_ingestion.mailbox.fetch_parser import parse_fast

GMAIL = (
    rb'3 (X-GM-THRID 1278455344230334866 X-GM-MSGID 1278455344230334865 X-GM-LABELS ("\\Inbox" "\\Sent" M&APY-ller '
    rb'"with \"quotes\"" "two words") UID 41 RFC822.SIZE 12345 INTERNALDATE " 1-Jan-2026 10:20:30 -0730" '
    rb"FLAGS (\Seen $Forwarded))"
)
DOVECOT = rb'1 (UID 7 RFC822.SIZE 99 INTERNALDATE "17-Jul-1996 02:44:25 +0000" FLAGS ())'

USUAL = [
    [GMAIL, DOVECOT],
    [(b"3 (UID 41 BODY[] {5}", b"hello"), b")", (b"4 (UID 42 BODY[] {0}", b""), b")"],
    [(b"3 (UID 41 BODY[]<1024> {5}", b"hello"), b")"],
    [b"3 (UID 41 FLAGS (\\Seen))", DOVECOT, b"3 (UID 41 RFC822.SIZE 5)"],
]
UNUSUAL = [
    [b"3 (FLAGS (\\Seen))"],  # nobody asked, and it does not say which message
    [b"3 (UID 41 X-GM-LABELS (2024 \\Inbox))"],
    [b"3 (UID 41 X-GM-LABELS (NIL))"],
    [(b"3 (UID 41 X-GM-LABELS ({5}", b"hello"), b") FLAGS ())"],
    [(b"3 (BODY[] {5}", b"hello"), b" UID 41)"],
    [b"3 (UID 41 BODY[] NIL)"],
    [b'3 (UID 41 INTERNALDATE "yesterday")'],
    [b'3 (UID 41 INTERNALDATE "31-Feb-2026 10:20:30 +0000")'],
    [b"3 (UID 41"],
]


@pytest.mark.parametrize("responses", USUAL)
def test_usual_responses_are_read_as_imapclient_reads_them(responses):
    theirs = parse_fetch_response(responses, normalise_times=False, uid_is_key=True)
    assert parse_fast(responses) == {
        uid: {name: value for name, value in data.items() if name != b"SEQ"} for uid, data in theirs.items()
    }


@pytest.mark.parametrize("responses", UNUSUAL)
def test_unusual_responses_are_left_to_imapclient_or_read_alike(responses):
    found = parse_fast(responses)
    if found is not None:
        theirs = parse_fetch_response(responses, normalise_times=False, uid_is_key=True)
        assert found == {uid: {k: v for k, v in data.items() if k != b"SEQ"} for uid, data in theirs.items()}


def test_no_response_is_no_message():
    assert parse_fast([None]) == {}


def test_a_label_with_half_a_pair_of_brackets_is_a_label():
    assert parse_fast([b"3 (UID 41 X-GM-LABELS ([abc \\Inbox))"]) == {41: {b"X-GM-LABELS": (b"[abc", b"\\Inbox")}}
