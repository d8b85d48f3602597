"""Hostile mail ends as a record with a defect, and what is kept of it is bounded; no test looks at a clock."""

from __future__ import annotations

import pytest

from email_ingestion.parsing import headers, limits, parse, structure
from email_ingestion.parsing.defects import Defects
from email_ingestion.parsing.part import Part
from email_ingestion.records import Email
from tests.unit.parsing.messages import envelope

MIXED = b"Content-Type: multipart/mixed; boundary=x\n\n"
HTML = b"Content-Type: text/html\n\n"


def nested(levels: int, kind: bytes = b"mixed") -> bytes:
    return b"".join(
        b"Content-Type: multipart/%b; boundary=b%04d\n\n--b%04d\n" % (kind, level, level) for level in range(levels)
    )


def read(raw: bytes) -> Email:
    return parse(envelope(), raw)


def tree(raw: bytes) -> Part:
    return structure.read(raw, headers.scan(raw, Defects()), Defects())


def depth(part: Part) -> int:
    return 1 + max(map(depth, part.children), default=0)


def leaves(part: Part) -> int:
    return sum(map(leaves, part.children)) if part.children else 1


@pytest.mark.parametrize("levels", [limits.DEPTH + 10, 240, 5000])
def test_deep_nesting_is_followed_to_the_limit(levels: int) -> None:
    assert "mime:too-deep" in read(nested(levels) + b"\n\nhi").defects


def test_the_tree_is_no_deeper_than_the_limit() -> None:
    assert depth(tree(nested(limits.DEPTH + 20) + b"\n\nhi")) == limits.DEPTH + 1


@pytest.mark.parametrize("parts", [limits.PARTS + 1, 15_000, 100_000])
def test_parts_beyond_the_limit_are_dropped(parts: int) -> None:
    email = read(MIXED + b"--x\nContent-Type: image/png\n\nabc\n" * parts)
    assert len(email.attachments) == limits.PARTS
    assert "mime:too-many-parts" in email.defects


def test_the_tree_stops_at_the_limit_of_parts() -> None:
    assert leaves(tree(MIXED + b"--x\n\nabc\n" * 50_000)) == limits.PARTS


@pytest.mark.parametrize("line", [b"--x\n", b"--x--\n", b"--xy\n", b"--x\n\n"])
def test_delimiters_beyond_the_limit_are_not_looked_at(line: bytes) -> None:
    email = read(MIXED + line * 300_000 + b"--x\n\nhi\n--x--\n")
    assert {"mime:truncated", "mime:too-many-parts"} & set(email.defects)


def test_messages_within_messages_stay_closed() -> None:
    inside = b"Content-Type: message/rfc822\n\n" * 5_000 + b"\n\nhi"
    (attachment,) = read(MIXED + b"--x\n" + inside + b"\n--x--\n").attachments
    assert attachment.content_type == "message/rfc822"
    assert attachment.size == len(inside) - len(b"Content-Type: message/rfc822\n\n")


def test_messages_within_a_large_message_are_not_opened_by_the_tree() -> None:
    assert leaves(tree(MIXED + b"--x\n" + b"Content-Type: message/rfc822\n\n" * 240 + b"x" * 1_000_000)) == 1


def test_a_field_of_encoded_word_starts_leaves_the_part() -> None:
    source = MIXED + b'--x\nContent-Type: image/png; name="' + b"=?" * 500_000 + b'"\n\nhi'
    assert len(read(source).attachments) == 1


@pytest.mark.parametrize("line", [b"junk\n", b"a=b\n", b"x;\n", b"A: b;\nc=d\n"])
def test_junk_in_the_header_of_a_part_leaves_the_next_part(line: bytes) -> None:
    email = read(MIXED + b"--x\nContent-Type: text/plain;\n" + line * 200_000 + b"--x\n\nhi\n--x--\n")
    assert email.text.endswith("hi")


def test_a_gigantic_field_is_cut() -> None:
    email = read(b"Subject: " + b"x" * 3_000_000 + b"\n\nhi")
    assert len(email.subject) == limits.HEADER_BYTES
    assert email.text == "hi"
    assert "header:truncated" in email.defects


@pytest.mark.parametrize("line", [b"A: b\n", b"A:\n", b"junk\nA: b\n"])
def test_fields_beyond_the_limit_are_dropped_and_the_body_is_found(line: bytes) -> None:
    email = read(line * 300_000 + b"\nhi")
    assert len(email.headers) == limits.HEADER_FIELDS
    assert email.text == "hi"
    assert "header:truncated" in email.defects


def test_recipients_beyond_the_limit_are_dropped() -> None:
    email = read(b"To: " + b"a@example.com, " * 60_000 + b"\n\nhi")
    assert len(email.to) == limits.RECIPIENTS
    assert "address:truncated" in email.defects


@pytest.mark.parametrize(
    "value",
    [
        b"(" * 400_000,
        b'"\\' * 200_000,
        b'<"' * 200_000,
        b"[" * 400_000,
        b"=" * 400_000,
        b"a:;" * 200_000,
        b"a" + b" " * 400_000 + b"b",
    ],
)
def test_address_garbage_is_read_to_its_limit(value: bytes) -> None:
    email = read(b"To: " + value + b"\nCc: ann@example.com\n\nhi")
    assert "address:truncated" in email.defects
    assert [one.addr for one in email.cc] == ["ann@example.com"]


@pytest.mark.parametrize("word", [b"=?", b"=?utf-8?q?a?= ", b"=?x?q?a?= ", b"=?a?q?", b"=?utf-8?b?\xff?= "])
def test_encoded_words_beyond_the_limit_stay_as_they_are(word: bytes) -> None:
    email = read(b"Subject: " + word * 50_000 + b"\n\nhi")
    assert "encoded-word:invalid" in email.defects
    assert len(email.subject) <= len(word) * 50_000


def test_references_beyond_the_limit_are_dropped() -> None:
    assert len(read(b"References: " + b"<a@b>" * 100_000 + b"\n\nhi").references) == limits.MESSAGE_IDS


@pytest.mark.parametrize(
    "value",
    [
        b"charset=a b=c " * 60_000,
        b"a*0*=x; " * 200_000,
        b'name="' + b"\\" * 900_000,
        b"; " * 400_000,
        b";" + b" " * 900_000,
    ],
)
def test_parameter_garbage_leaves_the_body(value: bytes) -> None:
    assert read(b"Content-Type: text/plain; " + value + b"\n\nhi").text == "hi"


@pytest.mark.parametrize("value", [b"1" * 900_000, b"(" * 900_000, b"Mon, " + b"9" * 5000 + b" Jan 2024"])
def test_a_date_of_garbage_is_no_date(value: bytes) -> None:
    email = read(b"Date: " + value + b"\n\n")
    assert email.date is None
    assert "date:invalid" in email.defects


@pytest.mark.parametrize("encoding", [b"base64", b"quoted-printable", b"x-uuencode"])
@pytest.mark.parametrize("garbage", [b"A=", b"=", b" ", b"\n", b"begin 644 a\n", b"M"])
def test_transfer_garbage_decodes_to_no_more_than_it_was(encoding: bytes, garbage: bytes) -> None:
    email = read(b"Content-Transfer-Encoding: " + encoding + b"\n\n" + garbage * 100_000)
    assert len(email.text) <= len(garbage) * 100_000


def test_a_long_text_is_cut() -> None:
    email = read(b"\n" + b"x" * (limits.TEXT_CHARS + 1))
    assert len(email.text) == limits.TEXT_CHARS
    assert "text:truncated" in email.defects


def test_long_html_is_cut_and_less_of_it_turned_into_text() -> None:
    email = read(HTML + b"x" * (limits.TEXT_CHARS + 1))
    assert email.html
    assert len(email.html) == limits.TEXT_CHARS
    assert len(email.text) == limits.HTML_CHARS
    assert "html:truncated" in email.defects


@pytest.mark.parametrize(
    "tag", [b"<div>", b"<b>x</b>", b"<ul><li>x", b"<table><tr><td>", b"<br>", b"<!--", b"<", b"<a <b "]
)
def test_html_bombs_give_no_more_text_than_html(tag: bytes) -> None:
    email = read(HTML + tag * 100_000)
    assert len(email.text) <= len(tag) * 100_000
    assert "html:truncated" in email.defects


def test_html_of_many_parts_shares_one_budget() -> None:
    part = b"--x\nContent-Type: text/html\n\n" + b"<b>a</b>" * 600 + b"\n"
    email = read(MIXED + part * 500)
    assert "html:truncated" in email.defects
    assert email.text.count("a") <= limits.HTML_TAGS


def test_wide_tables_are_not_padded() -> None:
    rows = b"<tr><td>" + b"x" * 300_000 + b"</td></tr>" + b"<tr><td>y</td></tr>" * 5_000
    assert len(read(HTML + b"<table>" + rows + b"</table>").text) < 400_000


def test_margins_are_not_written_out() -> None:
    style = b'<p style="margin-top: 99999999em; padding-left: 9999999em">x</p>'
    assert read(HTML + style).text == "x"


def test_messages_inside_are_opened_up_to_the_limit_and_attached_beyond() -> None:
    one = b"--x\nContent-Type: message/rfc822\n\nSubject: inside\n\nhello\n"
    email = read(MIXED + one * (limits.ENCLOSED_MESSAGES + 5) + b"--x--\n")
    assert len(email.enclosed) == limits.ENCLOSED_MESSAGES
    assert len(email.attachments) == limits.ENCLOSED_MESSAGES + 5


def test_messages_inside_share_one_budget_of_html() -> None:
    inside = b"Subject: inside\n" + HTML + b"<p>a" * limits.HTML_TAGS + b"\n"
    email = read(MIXED + (b"--x\nContent-Type: message/rfc822\n\n" + inside) * 3 + b"--x--\n")
    assert [bool(one.text) for one in email.enclosed] == [True, False, False]


@pytest.mark.parametrize(
    "raw",
    [
        MIXED.replace(b"=x", b"=a") + b"--a" * 1_000_000,
        b"\n" + b"=ybegin line=1 name=x\n" * 200_000,
        b"\n" + b"begin 644 x\n" * 200_000,
        b"\n" + b"\x1b$B" * 500_000,
        b"Content-Type: text/plain; charset=iso-2022-jp\n\n" + b"\x1b$B$3\x1b(B\xff" * 100_000,
        b"Content-Type: text/plain;\n" + b"a=b;\n" * 200_000,
        b"Content-Transfer-Encoding: base64\n\n" + b"QQ==" * 200_000,
        b"Content-Transfer-Encoding: quoted-printable\n\n" + b"= \r\n" * 200_000,
        b"From: mailer-daemon@x\n\nThis is the qmail-send program\n" + b"<a@b>:\n" * 50_000 + b"a@" * 50_000,
        b"Content-Type: application/pkcs7-mime\n\n" + b"\x30\x80" * 500_000,
        b"Content-Type: multipart/mixed; boundary=a\n\n--a\n" * 20_000,
        b"Content-Type: text/plain" + b" " * 60_000 + b'"=\n\nhi',
        b"To: bob@exa" + b"\t" * 240_000 + b"x\n\nhi",
        b'X-Failed-Recipients: "' + b"\xff" * 900_000 + b"\n\nhi",
        b"From: \x1b$B" + b"a@b " * 240_000 + b"\n\nhi",
    ],
)
def test_what_repairs_damaged_mail_is_no_bomb(raw: bytes) -> None:
    assert "parse:failed" not in read(raw).defects
