"""Whatever the bytes are, a record comes out, and every database can store it."""

from __future__ import annotations

from email import message_from_bytes
from email.message import EmailMessage, Message
from email.policy import SMTP, default

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from email_ingestion.parsing import headers, parse, structure
from email_ingestion.parsing.defects import Defect, Defects
from email_ingestion.parsing.part import Part, clean_filename
from email_ingestion.records import Email
from tests.unit.parsing.messages import envelope, strings

PIECES = [
    *(b"Subject: ", b"To: ", b"From: ", b"Date: ", b"References: ", b"Content-ID: ", b": ", b"\n", b"\r\n", b"\n\n"),
    *(b"Content-Type: ", b"multipart/mixed; boundary=x", b"multipart/alternative; boundary=y", b"message/rfc822"),
    *(
        b"text/html; charset=",
        b"text/plain; format=flowed; charset=",
        b"utf-8",
        b"utf-7",
        b"utf-16",
        b"hz",
        b"idna",
        b"quopri",
        b"zlib",
    ),
    *(b"Content-Transfer-Encoding: ", b"base64", b"quoted-printable", b"x-uuencode", b"begin 644 a\n"),
    *(b"Content-Disposition: attachment; filename=", b"; filename*0*=", b"utf-8''", b"\n--x\n", b"\n--y\n", b"--x--"),
    *(b"=?utf-8?q?", b"=?gb2312?B?xOM=?=", b"?=", b"=?", b'"', b"\\", b";", b",", b"<", b">", b"(", b")", b"@", b"%"),
    *(b"<b>", b"<table>", b"<td>", b"<li value=", b"&#xd800;", b"&#0;", b"<!--", b"<?xml", b"99", b"=", b" ", b"a"),
    *(b"message/delivery-status", b"message/feedback-report", b"text/calendar", b"application/ms-tnef"),
    *(b"Final-Recipient: ", b"Feedback-Type: ", b"METHOD:", b"\x78\x9f\x3e\x22", b"List-Unsubscribe: <", b"Sender: "),
    *(b"Authentication-Results: mx.google.com; ", b"dkim=", b"pass", b"Auto-Submitted: "),
    *(b"\x00", b"\xff", b"\xc3\xa9", b"\xed\xa0\x80", b"\x1b$B", b"~{", b"\x85", b"\xe2\x80\xa8"),
]
MESSY = st.lists(st.sampled_from(PIECES) | st.binary(max_size=8), max_size=60).map(b"".join)
QUIET = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])


def valid_message() -> bytes:
    message = EmailMessage()
    message["From"] = "Jörg Müller <joerg@example.com>"
    message["To"] = "Ann Lee <ann@example.org>, bob@example.net"
    message["Subject"] = "Grüße aus Köln"
    message["Date"] = "Mon, 05 Aug 2024 12:04:05 +0200"
    message["Message-ID"] = "<1@example.com>"
    message.set_content("Größe\r\n" * 3)
    message.add_alternative("<p>Größe</p>", subtype="html")
    message.add_attachment(bytes(range(256)), maintype="application", subtype="pdf", filename="Köln.pdf")
    return message.as_bytes(policy=SMTP)


VALID = valid_message()


def is_storable(email: Email) -> bool:
    """UTF-8 without NUL, header values in one line, and none of it the record of last resort."""
    texts = strings(email)
    for text in texts:
        text.encode("utf-8")
    lines = [email.subject, *(value for _, value in email.headers)]
    return (
        not any("\x00" in text for text in texts)
        and all(len(line.splitlines()) <= 1 for line in lines)
        and Defect.PARSE_FAILED.value not in email.defects
    )


@QUIET
@given(st.binary(max_size=400))
def test_any_bytes_become_a_storable_record(raw: bytes) -> None:
    assert is_storable(parse(envelope(), raw))


@QUIET
@given(MESSY)
def test_anything_that_looks_like_mail_becomes_a_storable_record(raw: bytes) -> None:
    assert is_storable(parse(envelope(), raw))


@QUIET
@given(st.lists(st.tuples(st.integers(0, len(VALID)), st.integers(0, 60), st.sampled_from(PIECES)), max_size=12))
def test_a_damaged_message_becomes_a_storable_record(damages: list[tuple[int, int, bytes]]) -> None:
    raw = VALID
    for position, removed, inserted in damages:
        raw = raw[:position] + inserted + raw[position + removed :]
    assert is_storable(parse(envelope(), raw))


@QUIET
@given(MESSY)
def test_the_same_bytes_give_the_same_record(raw: bytes) -> None:
    here = envelope()
    assert parse(here, raw) == parse(here, raw)


def shape(part: Part) -> object:
    if part.children:
        return part.content_type, [shape(child) for child in part.children]
    return part.content_type, part.filename, part.disposition, part.content


def standard_shape(message: Message) -> object:
    if message.is_multipart():
        return message.get_content_type(), [standard_shape(child) for child in message.get_payload()]
    return (
        message.get_content_type(),
        clean_filename(message.get_filename() or ""),
        message.get_content_disposition() or "",
        message.get_payload(decode=True),
    )


LEAVES = st.sampled_from(
    [
        ("plain", "text", "7bit text\r\nsecond line"),
        ("html", "text", "<p>Größe</p>\r\n" * 3),
        ("pdf", "application", bytes(range(256)) * 3),
        ("octet-stream", "application", b"x"),
    ],
)
NAMES = st.sampled_from(["a.pdf", "Größe.txt", "日本語 ファイル.bin", 'quo"ted;.x', "x" * 150])


@settings(QUIET, max_examples=100)
@given(st.lists(st.tuples(LEAVES, NAMES), min_size=1, max_size=5))
def test_well_formed_mail_is_split_as_by_the_standard_library(
    leaves: list[tuple[tuple[str, str, str | bytes], str]],
) -> None:
    message = EmailMessage()
    message.set_content("hello\r\n")
    for (subtype, maintype, content), name in leaves:
        if isinstance(content, str):
            message.add_attachment(content, subtype=subtype, filename=name)
        else:
            message.add_attachment(content, maintype=maintype, subtype=subtype, filename=name)
    source = message.as_bytes(policy=SMTP)
    tree = structure.read(source, headers.scan(source, Defects()), Defects())
    assert shape(tree) == standard_shape(message_from_bytes(source, policy=default))


@pytest.mark.parametrize("length", range(0, len(VALID), 37))
def test_a_message_cut_off_anywhere_keeps_what_came_before(length: int) -> None:
    email = parse(envelope(), VALID[:length])
    assert is_storable(email)
    if length > VALID.index(b"\r\n\r\n"):
        assert email.subject == "Grüße aus Köln"
