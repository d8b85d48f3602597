"""An ordinary message and everything its record holds."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import pytest

from email_ingestion.parsing import parse
from email_ingestion.records import Address
from tests.unit.parsing.messages import envelope

RAW = b"""\
Received: by 2002:a05:6520:1 with SMTP id k1;\r
        Mon, 5 Aug 2024 03:04:05 -0700 (PDT)\r
From: =?utf-8?q?J=C3=B6rg_M=C3=BCller?= <joerg@example.com>\r
To: Ann Lee <ann@example.org>, bob@example.net\r
Cc: "Lee, Cy" <cy@example.org>\r
Bcc: dan@example.org\r
Reply-To: office@example.com\r
Subject: =?utf-8?q?Angebot_K=C3=B6ln?=\r
Date: Mon, 05 Aug 2024 12:04:05 +0200\r
Message-ID: <3@example.com>\r
In-Reply-To: <2@example.com>\r
References: <1@example.com>\r
 <2@example.com>\r
Received: by relay.example.com\r
MIME-Version: 1.0\r
Content-Type: multipart/mixed; boundary="outer"\r
\r
This is a multi-part message.\r
--outer\r
Content-Type: multipart/alternative; boundary="inner"\r
\r
--inner\r
Content-Type: text/plain; charset=utf-8\r
Content-Transfer-Encoding: quoted-printable\r
\r
Gr=C3=BC=C3=9Fe\r
--inner\r
Content-Type: text/html; charset=utf-8\r
Content-Transfer-Encoding: quoted-printable\r
\r
<p>Gr=C3=BC=C3=9Fe</p>\r
--inner--\r
--outer\r
Content-Type: application/pdf; name="Angebot.pdf"\r
Content-Disposition: attachment; filename="Angebot.pdf"\r
Content-Transfer-Encoding: base64\r
\r
JVBERi0xLjQK\r
--outer--\r
"""


def test_an_ordinary_message_is_understood_completely() -> None:
    here = envelope()
    email = parse(here, RAW)
    assert email.envelope is here
    assert email.message_id == "<3@example.com>"
    assert email.subject == "Angebot Köln"
    assert email.from_ == Address("Jörg Müller", "joerg@example.com")
    assert email.to == (Address("Ann Lee", "ann@example.org"), Address("", "bob@example.net"))
    assert email.cc == (Address("Lee, Cy", "cy@example.org"),)
    assert email.bcc == (Address("", "dan@example.org"),)
    assert email.reply_to == (Address("", "office@example.com"),)
    assert email.date == datetime(2024, 8, 5, 10, 4, 5, tzinfo=UTC)
    assert email.in_reply_to == "<2@example.com>"
    assert email.references == ("<1@example.com>", "<2@example.com>")
    assert email.text == "Grüße"
    assert email.html == "<p>Grüße</p>"
    assert email.defects == ()


def test_headers_keep_their_order_and_their_duplicates() -> None:
    headers = parse(envelope(), RAW).headers
    assert [name for name, _ in headers[:2]] == ["Received", "From"]
    assert headers[0][1] == "by 2002:a05:6520:1 with SMTP id k1; Mon, 5 Aug 2024 03:04:05 -0700 (PDT)"
    assert [value for name, value in headers if name == "Received"][1] == "by relay.example.com"


def test_an_attachment_is_decoded_and_fingerprinted() -> None:
    (attachment,) = parse(envelope(), RAW).attachments
    assert attachment.content == b"%PDF-1.4\n"
    assert attachment.sha256 == hashlib.sha256(b"%PDF-1.4\n").hexdigest()
    assert (attachment.position, attachment.filename, attachment.size) == (1, "Angebot.pdf", 9)
    assert not attachment.inline


def test_a_nested_message_keeps_its_very_bytes() -> None:
    inner = b"Subject: inner\r\nX-Odd:   spaced\r\n\r\nbody =\r\n"
    raw = (
        b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\nContent-Type: message/rfc822\r\n\r\n"
        + inner
        + b"\r\n--x--\r\n"
    )
    (attachment,) = parse(envelope(), raw).attachments
    assert attachment.content == inner
    assert attachment.filename == "inner.eml"


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_line_ends_of_texts_are_the_same_everywhere(ending: bytes) -> None:
    assert parse(envelope(), b"From: a@b.c" + ending * 2 + b"one" + ending + b"two").text == "one\ntwo"


def test_a_fault_inside_ends_as_a_record_that_says_so() -> None:
    email = parse(envelope(), None)  # type: ignore[arg-type]
    assert email.defects == ("parse:failed",)
    assert email.email_id == envelope().email_id
