"""Reports of failed delivery and automatic replies, as the servers of the world write them."""

from __future__ import annotations

import pytest

from email_ingestion.parsing import parse
from tests.unit.parsing.messages import envelope

EXCHANGE_RULE = "Auto-Submitted: auto-generated\nX-Auto-Response-Suppress: All\nX-MS-Exchange-Inbox-Rules-Loop: a@b.de"
EXIM = """\
This message was created automatically by mail delivery software.

A message that you sent could not be delivered to one or more of its
recipients. This is a permanent error. The following address(es) failed:

  n@example.org
    host mx.example.org [192.0.2.1]
    SMTP error from remote mail server after RCPT TO:<n@example.org>:
    550 5.1.1 no such user
  m@example.org
    Unrouteable address

------ This is a copy of the message, including all the headers. ------

To: other@example.net
"""
QMAIL = """\
Hi. This is the qmail-send program at mx.example.com.
I'm afraid I wasn't able to deliver your message to the following addresses.
This is a permanent error; I've given up. Sorry it didn't work out.

<n@example.org>:
192.0.2.1 does not like recipient.
Remote host said: 550 5.1.1 User unknown
Giving up on 192.0.2.1.

--- Below this line is a copy of the message.

Return-Path: <ann@example.com>
"""
POSTFIX = """\
This is the Postfix program at host mx.example.com.

I'm sorry to have to inform you that your message could not be
be delivered to one or more recipients. It's attached below.

                        The Postfix program

<n@example.org>: host mx.example.org[192.0.2.1] said: 550 5.1.1 unknown
"""
GMAIL = """\
This is an automatically generated Delivery Status Notification

Delivery to the following recipient failed permanently:

     n@example.org

Technical details of permanent failure:
Google tried to deliver your message, but it was rejected. 550 5.1.1 no such user

----- Original message -----

To: other@example.net
"""
EXCHANGE = """\
Your message did not reach some or all of the intended recipients.

      Subject:  hello
      Sent:     1/1/2024 10:00 AM

The following recipient(s) could not be reached:

      n@example.org on 1/1/2024 10:00 AM
            The e-mail account does not exist. <mx.example.org #5.1.1>
"""
EXIM_WAITS = """\
This message was created automatically by mail delivery software.
A message that you sent has not yet been delivered to one or more of its
recipients after more than 24 hours on the queue on mx.example.com.

The address to which the message has not yet been delivered is:

  n@example.org
    Delay reason: Connection timed out

No action is required on your part.
"""


def bounce(
    text: str, fields: str = "From: Mail Delivery System <MAILER-DAEMON@example.com>"
) -> list[tuple[str, str, str]]:
    found = parse(envelope(), f"{fields}\nSubject: failure notice\n\n{text}".encode()).bounce
    return [(one.recipient, one.action, one.status) for one in found.recipients] if found else []


@pytest.mark.parametrize("text", [EXIM, QMAIL, POSTFIX, GMAIL, EXCHANGE])
def test_a_report_for_people_names_who_did_not_get_it(text: str) -> None:
    assert bounce(text)[0] == ("n@example.org", "failed", "5.1.1")
    assert "other@example.net" not in [one[0] for one in bounce(text)]


def test_a_report_for_people_names_all_of_them() -> None:
    assert [one[0] for one in bounce(EXIM)] == ["n@example.org", "m@example.org"]


def test_a_report_of_a_delay_says_so() -> None:
    assert bounce(EXIM_WAITS) == [("n@example.org", "delayed", "4.0.0")]


def test_a_person_who_quotes_a_report_is_not_one() -> None:
    assert bounce(QMAIL, "From: Ann <ann@example.com>") == []


def test_the_field_of_exim_names_recipients_that_the_text_does_not() -> None:
    fields = "From: ann@example.com\nX-Failed-Recipients: n@example.org, m@example.org"
    assert [one[0] for one in bounce("No such person.", fields)] == ["n@example.org", "m@example.org"]


@pytest.mark.parametrize(
    "status",
    [
        "Final-Recipient: rfc822;<n@example.org>\nAction: failed\nStatus: 5.1.1",
        "Final-Recipient: n@example.org\nAction: failed (mailbox)\nStatus: 5.1.1 (unknown)",
        "Reporting-MTA: dns; mx\nFinal-Recipient: RFC822; n@example.org\nAction: Failed\nStatus: 5.1.1",
        "Reporting-MTA: dns; mx\n\nX-Note: x\n\nFinal-Recipient: rfc822;n@example.org\nAction:failed\nStatus:5.1.1",
    ],
)
def test_a_delivery_status_is_read_in_every_arrangement(status: str) -> None:
    source = (
        f"Content-Type: multipart/report; boundary=b\n\n--b\nContent-Type: message/delivery-status\n\n{status}\n--b--\n"
    )
    found = parse(envelope(), source.encode()).bounce
    assert found
    (one,) = found.recipients
    assert (one.recipient, one.action, one.status) == ("n@example.org", "failed", "5.1.1")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("Auto-Submitted: auto-replied (vacation)", True),
        ("Subject: Automatische Antwort: x\nAuto-Submitted: auto-generated\nX-Auto-Response-Suppress: All", True),
        ("Subject: Out of Office: x\nX-Auto-Response-Suppress: All", True),
        (
            f"Subject: x\n{EXCHANGE_RULE}",
            True,
        ),
        (
            f"Subject: FW: x\n{EXCHANGE_RULE}",
            False,
        ),
        ("X-Autoreply: yes", True),
        ("Precedence: auto_reply", True),
        ("Subject: Out of office next week?", False),
        ("Auto-Submitted: auto-generated", False),
        ("Auto-Submitted: no", False),
    ],
)
def test_an_answer_that_nobody_wrote_is_told_from_mail(fields: str, expected: bool) -> None:
    assert parse(envelope(), f"From: a@b.de\n{fields}\n\nI am away.\n".encode()).auto_reply is expected


@pytest.mark.parametrize(
    ("reference", "content_id"),
    [
        ("cid:img1", "img1"),
        ("CID:img1", "img1"),
        ("cid:img%401", "img@1"),
        ("cid:img&amp;1", "img&1"),
        ("cid:a", "img1"),
    ],
)
def test_an_image_is_inline_when_the_html_shows_it(reference: str, content_id: str) -> None:
    source = (
        f'Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: text/html\n\n<img src="{reference}">\n--b\n'
        f"Content-Type: image/png\nContent-Disposition: attachment\nContent-ID: <{content_id}>\n\nx\n--b--\n"
    )
    assert parse(envelope(), source.encode()).attachments[0].inline is (reference != "cid:a")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("<a\n b@example.com> <c@example.com>", ("<ab@example.com>", "<c@example.com>")),
        ("<a@\n\texample.com>", ("<a@example.com>",)),
        ('<"a b"@example.com>', ('<"a b"@example.com>',)),
    ],
)
def test_an_id_that_was_folded_is_whole_again(value: str, found: tuple[str, ...]) -> None:
    assert parse(envelope(), f"References: {value}\n\nx".encode()).references == found


def test_a_report_that_lists_nobody_keeps_its_text() -> None:
    said = (
        "This message was created by Exim: it could not be delivered to one or more of its recipients, whom it hides."
    )
    email = parse(envelope(), f"From: Mailer-Daemon <mailer-daemon@example.com>\n\n{said}\n".encode())
    assert email.text.strip() == said
    assert email.bounce is None
    assert email.defects == ("date:missing",)
