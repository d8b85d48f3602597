"""Words of mail, of servers, alerts and colleagues, where people read them: they call nobody and control nothing."""

from __future__ import annotations

import pytest

from email_ingestion.cli.exit_codes import REDIS_REMEDY, _sentence
from email_ingestion.cli.output import printable_lines
from email_ingestion.errors import RedisConnectionError
from email_ingestion.incidents.texts import without_markup
from email_ingestion.ops.alert_channels import AlertChannels, configured_channels
from email_ingestion.ops.notices import NoticeItem, Notification
from email_ingestion.settings import Settings
from tests.servers.receiver import http_receiver, smtp_receiver

HOSTILE = "late\x1b[2J\x07 <script>alert(1)</script> <!channel> @org/team #12 [pay](https://evil.example) \u202egpj.exe"


def test_a_tracker_is_given_no_mention_no_link_and_no_html() -> None:
    shown = without_markup(f"**INC-20260101-001 P2 OPENED: {HOSTILE}**\n\n- www.evil.example http://evil.example\n")
    assert shown.startswith("**INC-20260101-001 P2 OPENED: late")
    for part in ("<", "@org", "#12", "](", "://", "www.evil", "\x1b", "\x07", "\u202e"):
        assert (part in shown) is (part == "](")
    assert "\\[pay]" in shown


def test_a_text_of_several_lines_controls_no_terminal() -> None:
    assert printable_lines("a\x1b[2J\n- b\r\u202e\x9b\n") == "a [2J\n- b   \n"


def test_a_notice_is_text_wherever_it_is_read() -> None:
    notice = Notification((NoticeItem("RedisDown", "P1", f"{HOSTILE}\r\nBcc: eve@evil.example"),))
    with http_receiver() as chat:
        channels = configured_channels(Settings(alert_channels=f"json://127.0.0.1:{chat.port}/here"))
        assert AlertChannels(channels).send(notice)
    with smtp_receiver() as mail:
        given = {"alert_email_recipients": "ada@example.com", "alert_smtp_url": f"smtp://127.0.0.1:{mail.port}"}
        assert AlertChannels(configured_channels(Settings(**given))).send(notice)
    told = f"{chat.posted[0]['title']} {chat.posted[0]['message']}"
    assert not set("\x1b\x07\u202e\r") & set(told)
    (text,) = mail.mail
    assert not [line for line in text.splitlines() if line.lower().startswith("bcc:")]
    assert "<script>" not in text.partition("text/html")[2]


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("Redis does not answer: Error 111 connecting to 127.0.0.1:1. Connection refused.", REDIS_REMEDY),
        ("Redis does not serve: WRONGTYPE x is a string where a stream belongs: `email-ingestion doctor` names it", ""),
        ("Redis does not serve: NOPERM User has no permissions", "`email-ingestion doctor` says what to do about it"),
    ],
)
def test_what_to_do_about_redis_fits_what_it_says(text: str, remedy: str) -> None:
    found = _sentence(RedisConnectionError(text))
    assert found.endswith(f"{remedy}.")
    assert (REDIS_REMEDY in found) is (remedy == REDIS_REMEDY)
