"""The fast parser of FETCH responses gives what imapclient gives, or leaves it to imapclient; damage spoils one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from imapclient.response_parser import parse_fetch_response

from email_ingestion.mailbox.fetch_parser import SALVAGED_FLAGS, parse, parse_fast
from email_ingestion.mailbox.message_summary import parse_mark_changes, parse_summary, readable_date

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


# What no parser reads, with the values that can be told apart all the same.
DAMAGED = {
    rb"2 (UID 7 FLAGS (Junk(1 \Seen) RFC822.SIZE 12)": {b"FLAGS": (b"Junk(1", rb"\Seen"), b"RFC822.SIZE": 12},
    rb"2 (FLAGS (a)b) UID 7 RFC822.SIZE 12)": {b"FLAGS": (b"a)b",), b"RFC822.SIZE": 12},
    rb'2 (X-GM-LABELS ("a\"b" "UID 9" [abc x) UID 7 MODSEQ (4))': {
        b"X-GM-LABELS": (b'a"b', b"UID 9", b"[abc", b"x"),
        b"MODSEQ": (4,),
    },
    rb'2 (UID 7 FLAGS (x() RFC822.SIZE twelve INTERNALDATE "00-Jan-0000 00:00:00 +0000")': {
        b"RFC822.SIZE": None,
        b"INTERNALDATE": None,
    },
}


@pytest.mark.parametrize("response", DAMAGED)
def test_a_damaged_response_gives_what_can_be_told_apart_and_spoils_no_other(response: bytes):
    found = parse([DOVECOT.replace(b"UID 7", b"UID 6"), response, DOVECOT.replace(b"UID 7", b"UID 8")])
    assert found.keys() == {6, 7, 8}
    assert DAMAGED[response].items() <= found[7].items()
    assert found[6][b"RFC822.SIZE"] == found[8][b"RFC822.SIZE"] == 99


def test_a_body_comes_out_of_a_response_with_flags_that_nobody_can_read():
    responses = [(rb"2 (UID 7 FLAGS (Junk(1) BODY[] {5}", b"hello"), b")"]
    assert parse(responses) == {7: {b"FLAGS": (b"Junk(1",), b"BODY[]": b"hello", SALVAGED_FLAGS: True}}


def test_a_response_without_a_uid_is_nobodys():
    assert parse([b"3 (FLAGS (\\Seen))", DOVECOT]).keys() == {7}
    assert parse([b"3 (FLAGS (()", b"nonsense", b""]) == {}


@given(st.lists(st.binary(max_size=80), max_size=4), st.binary(max_size=40))
def test_no_bytes_make_the_parser_or_the_summary_fail(lines: list[bytes], literal: bytes):
    for uid, data in parse([(lines[0] if lines else b"1 (UID 1 BODY[] {9}", literal), *lines, DOVECOT]).items():
        assert parse_summary(uid, data).uid == uid


@pytest.mark.parametrize(
    ("value", "readable"),
    [
        (b'"17-Jul-1996 02:44:25 +0000"', True),
        *((value, False) for value in (b"NIL", b'""', b"17", b"()", b'"yesterday"')),
        (b'"01-Jan-0001 00:00:00 +0100"', False),
        (b'"00-Jan-0000 00:00:00 +0000"', False),
        (b'"31-Dec-9999 23:59:59 -0100"', False),
    ],
)
def test_a_date_is_readable_or_none(value: bytes, readable: bool):
    (data,) = parse([b"1 (UID 7 RFC822.SIZE 5 INTERNALDATE %b)" % value]).values()
    assert (readable_date(data[b"INTERNALDATE"]) is not None) is readable
    assert ("internaldate:unreadable" in parse_summary(7, data).defects) is not readable


@pytest.mark.parametrize("start", ["(A", "(UID 7 BODY[]", "(UID 7 FLAGS (", '(UID 7 X "'])
@pytest.mark.parametrize(
    "part", ["A", "A.", "[]", '"a" UID ', '\\"', "FLAGS (x ", "BODY[] x ", "(", "{1} ", '"\\" ', "1"]
)
def test_a_long_line_of_anything_takes_no_hours(start: str, part: str):
    """If its time grew with the square of the length it would, and keep every thread of the process waiting."""
    line = f"1 {start}{part * (40_000 // len(part))})".encode()
    found = parse([line, b"2 (UID 8 RFC822.SIZE 5)"])
    assert found[8] == {b"RFC822.SIZE": 5}


@pytest.mark.parametrize("modseq", ["MODSEQ ()", "MODSEQ (-1)", "MODSEQ (x)", "MODSEQ NIL", "FLAGS ()"])
def test_a_change_without_a_readable_modseq_is_left_out(modseq: str):
    found = parse([f"1 (UID 7 FLAGS () {modseq})".encode(), b"2 (UID 8 FLAGS () MODSEQ (5))", b"3 (UID 9 MODSEQ (6))"])
    assert [each.uid for each in parse_mark_changes(found, 1, is_gmail=False)] == [8]


def test_a_modseq_without_parentheses_is_one():
    found = parse([b"1 (UID 7 FLAGS () MODSEQ 5)"])
    assert [each.modseq for each in parse_mark_changes(found, 1, is_gmail=False)] == [5]


@pytest.mark.parametrize("label", ["R&D", "&2AA-", "a&-b&"])
def test_a_label_that_is_no_modified_utf_7_is_shown_as_it_is(label: str):
    found = parse([f'1 (UID 7 RFC822.SIZE 5 X-GM-LABELS ("{label}"))'.encode()])
    assert parse_summary(7, found[7]).labels == (label.replace("&-", "&"),)


@pytest.mark.parametrize("size", [-1, 2**31 - 1, 2**32 - 1, 2**63, 10**19])
def test_a_size_that_stands_for_none_is_none(size: int):
    assert parse_summary(7, {b"RFC822.SIZE": size}).announced is None


@pytest.mark.parametrize(
    "second", [(b"1 (UID 7 BODY[] {0}", b""), (b"1 (UID 7 BODY[] {2}", b"he"), b"1 (UID 7 BODY[] NIL)"]
)
def test_of_a_body_that_comes_twice_the_longer_one_counts(second: bytes | tuple[bytes, bytes]):
    first = [(b"1 (UID 7 BODY[] {5}", b"hello"), b")"]
    other = [second, b")"] if isinstance(second, tuple) else [second]
    assert parse([*first, *other])[7][b"BODY[]"] == parse([*other, *first])[7][b"BODY[]"] == b"hello"
