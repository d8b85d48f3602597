"""Whoever is asked may answer what hurts: redirects to where only we can go, bombs, brackets and bytes without end.

Each request that leaves this system is played against each of them: it ends in our own words, soon, in little memory,
and nobody but the address that was set is asked.
"""

from __future__ import annotations

import re
import socket
import tracemalloc
from collections.abc import Callable
from contextlib import closing, suppress
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from email_ingestion.cli.main import app
from email_ingestion.doctor import network_checks
from email_ingestion.doctor.account_checks import check_consent
from email_ingestion.errors import EmailIngestionError, OperationFailed
from email_ingestion.events import Published
from email_ingestion.fleet import alertmanager
from email_ingestion.fleet.alertmanager import Alertmanager
from email_ingestion.incidents.incident_log import find_incident
from email_ingestion.ledger.store import open_ledger
from email_ingestion.oauth2 import token_endpoint
from email_ingestion.ops import alert_channels
from email_ingestion.ops.alert_channels import AlertChannels, configured_channels
from email_ingestion.ops.notices import Notification
from email_ingestion.ops.traces import Traces
from email_ingestion.records import SinkMessage
from email_ingestion.settings import Settings
from email_ingestion.sinks import load_sink, webhook
from email_ingestion.sinks.webhook import open_sink
from tests.servers.api import letter
from tests.servers.hostile_http import DEEP, PACKED, PRIVATE, Hostile, answer, endless, hostile, trickle
from tests.servers.web import Visitor, running_pages, web_settings
from tests.servers.webhook import SECRET
from tests.unit.ops.shown import PRODUCER

MEMORY = 100 * 2**20  # bytes; what is unpacked has 256 MiB, and what has no end fills any
KEY = "0123456789abcdef0123456789abcdef"
Reply = Callable[[socket.socket], None] | str
REPLIES: dict[str, Reply] = {
    **{f"redirect {status}": status for status in ("301 Moved", "302 Found", "303 See", "307 Temporary", "308 Gone")},
    "redirect to metadata": answer("302 Found", Location=PRIVATE),
    "redirect to a file": answer("302 Found", Location="file:///etc/passwd"),
    "packed bomb": PACKED,
    "deep": DEEP,
    "endless": endless,
    "trickle": trickle,
    "other JSON": answer("200 OK", b'[{"labels": 5}]'),
    "date": answer("400 Bad", Date="Fri, 31 Dec 9999 23:59:59 GMT"),
    "date overflow": answer("400 Bad", Date="Mon, 1 Jan 99999999999 00:00:00 GMT", Retry_After="9" * 4000),
}


def ask_for_a_token(url: str) -> None:
    token_endpoint.request_token(f"{url}/token", {"grant_type": "refresh_token"})


def ask_a_webhook_for_its_digest(url: str) -> None:
    with closing(open_sink(_webhook(url))) as sink:  # type: ignore[arg-type]
        sink.get_digest("")
        raise OperationFailed("what it says is judged by others")


def post_to_a_webhook(url: str) -> None:
    with closing(open_sink(_webhook(url))) as sink:  # type: ignore[arg-type]
        sink.tell_missed(1)
        raise OperationFailed("only the status counts, which is good")


def _webhook(url: str) -> SimpleNamespace:
    return SimpleNamespace(
        webhook_url=url,
        webhook_secret=SECRET,
        webhook_timeout_seconds=1,
        sink_timeout=1,
        worker_threads=1,
        blob_threshold_bytes=1000,
        webhook_envelope="standard",
    )


def list_the_alerts(url: str) -> None:
    Alertmanager(url).alerts()


def tell_pagerduty(url: str) -> None:
    chosen = Settings(alert_channels="pagerduty", pagerduty_routing_key=KEY, pagerduty_events_url=url)
    AlertChannels(configured_channels(chosen), chosen.pagerduty_events_url).send(Notification.of_text("P1", "here"))
    raise OperationFailed("whether it was taken is the status alone")


def export_traces(url: str) -> None:
    traces = Traces(url, PRODUCER)
    traces(Published("default", "INBOX", ("default:gm:1",), 1, 10))
    traces.close()
    raise OperationFailed("a span may be lost")


def compare_clocks(url: str) -> None:
    network_checks.server_time(url)
    raise OperationFailed("it may have none")


def look_at_the_consent_page(url: str) -> None:
    chosen = Settings(google_client_id="x", google_client_secret="y", google_auth_uri=f"{url}/auth")
    raise OperationFailed(check_consent(chosen.all_accounts[0], "consent").cause)


CALLS = (
    *(ask_for_a_token, ask_a_webhook_for_its_digest, post_to_a_webhook, list_the_alerts, tell_pagerduty),
    *(export_traces, compare_clocks, look_at_the_consent_page),
)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for module, name in (
        *((token_endpoint, "DEADLINE_SECONDS"), (webhook, "_DIGEST_SECONDS"), (alertmanager, "SECONDS")),
        *((alert_channels, "PAGERDUTY_SECONDS"), (network_checks, "SECONDS")),
    ):
        monkeypatch.setattr(module, name, 1.0)
    monkeypatch.setattr("email_ingestion.doctor.account_checks.SECONDS", 1.0)
    monkeypatch.setattr("email_ingestion.ops.traces.EXPORT_SECONDS", 1.0)


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
@pytest.mark.parametrize("call", CALLS)
def test_an_answer_made_to_hurt_ends_in_our_words_and_leads_nowhere(call: Callable[[str], None], reply: Reply) -> None:
    with hostile(reply) as server:
        tracemalloc.start()
        try:
            with pytest.raises(EmailIngestionError) as raised:
                call(server.url)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < MEMORY
        assert str(raised.value).isprintable()
        assert len(str(raised.value)) < 500
        _nobody_else_was_asked(server)


def _nobody_else_was_asked(server: Hostile) -> None:
    assert server.asked
    assert not [line for line in server.asked if "/elsewhere" in line]


@pytest.mark.parametrize("status", ["302 Found", "307 Temporary"])
def test_apprise_follows_no_redirect(status: str) -> None:
    with hostile(status) as server:
        channel = server.url.replace("http://", "json://")
        assert not AlertChannels(configured_channels(Settings(alert_channels=channel))).send(
            Notification.of_text("P2", "a text")
        )
        _nobody_else_was_asked(server)


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
def test_a_tracker_that_answers_so_makes_no_ticket_and_holds_up_no_incident(
    reply: Reply, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("email_ingestion.cli.incident.WEBHOOK_SECONDS", 1.0)
    with hostile(reply) as server:
        monkeypatch.setenv("INCIDENT_WEBHOOK", server.url)
        monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
        printed = CliRunner().invoke(app, ["incident", "open", "--no-evidence", "late"], catch_exceptions=False)
        assert printed.exit_code == 0
        _nobody_else_was_asked(server)
    assert not find_incident("001").ticket


def test_an_address_in_a_trackers_answer_is_an_address_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    for url in ("javascript:alert(1)", "http://x.example/\\u001b[2J", "https://x.example/ @channel", "x" * 100_000):
        with hostile(answer("201 Created", f'{{"html_url": "{url}"}}'.encode())) as server:
            monkeypatch.setenv("INCIDENT_WEBHOOK", server.url)
            CliRunner().invoke(app, ["incident", "open", "--no-evidence", "late"], catch_exceptions=False)
        with suppress(EmailIngestionError):
            assert not find_incident("001").ticket


def test_nothing_in_a_mail_makes_us_ask_anybody(tmp_path: Path) -> None:
    """Its addresses are for whoever reads it: neither parsing nor a page, nor an export, goes there."""
    chosen = web_settings(tmp_path)
    with hostile(answer("200 OK", b"here")) as server:
        raw = MAIL.replace("URL", server.url).replace("\n", "\r\n").encode()
        stored = letter(1, raw)
        with closing(open_ledger(chosen.database_url)) as ledger:
            ledger.record([stored])
        load_sink(f"files:{tmp_path}/files", chosen).deliver([SinkMessage(stored.email, raw)])
        with running_pages(chosen) as address, Visitor(address) as visitor:
            visitor.enter(chosen)
            page = f"/mail/{stored.email.email_id}"
            assert "Invoice" in visitor.get(page).text
            for frame in re.findall(r'<iframe[^>]* src="([^"]+)"', visitor.get(page).text):
                shown = visitor.get(unescape(frame))
                assert shown.status_code == 200
                assert server.url not in re.sub(r"<a [^>]*>", "", shown.text)  # a link waits for who clicks it
        assert not server.asked


MAIL = """\
From: Ann <ann@example.org>
To: Bob <bob@example.com>
Subject: Invoice
Message-ID: <1@example.org>
List-Unsubscribe: <URL/unsubscribe>, <mailto:leave@example.org>
List-Unsubscribe-Post: List-Unsubscribe=One-Click
List-Archive: <URL/archive>
Disposition-Notification-To: ann@example.org
Return-Receipt-To: ann@example.org
X-Image-Url: URL/face
BIMI-Location: v=BIMI1; l=URL/bimi.svg
Autocrypt: addr=ann@example.org; keydata=URL/key
DKIM-Signature: v=1; d=example.org; s=URL/selector; b=x
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary=b

--b
Content-Type: text/html
Content-Base: URL/base/
Content-Location: URL/location

<!DOCTYPE html SYSTEM "URL/dtd"><html><head><base href="URL/base/">
<meta http-equiv="refresh" content="0;url=URL/meta">
<link rel=stylesheet href="URL/css"><link rel=prefetch href="URL/prefetch">
<style>@import "URL/import"; body{background:url(URL/css-image)}</style>
</head><body background="URL/background"><img src="URL/pixel.png" srcset="URL/2x 2x"><img src="file:///etc/passwd">
<iframe src="URL/frame"></iframe><object data="URL/object"></object><embed src="URL/embed">
<video poster="URL/poster" src="URL/video"></video><svg><image href="URL/svg"/><use href="URL/use#a"/></svg>
<form action="URL/form"><input type=image src="URL/input"></form>
<a href="URL/click" ping="URL/ping">Pay</a></body></html>
--b
Content-Type: message/external-body; access-type=URL; URL="URL/external"

Content-Type: text/plain

--b
Content-Type: text/calendar; method=REQUEST

BEGIN:VCALENDAR
BEGIN:VEVENT
ATTACH:URL/attach
ATTENDEE:URL/attendee
END:VEVENT
END:VCALENDAR
--b
Content-Type: application/xml
Content-Disposition: attachment; filename="a.xml"

<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "URL/entity">]><a>&x;</a>
--b
Content-Type: image/svg+xml
Content-Disposition: inline; filename="a.svg"

<svg xmlns="http://www.w3.org/2000/svg"><image href="URL/inline-svg"/></svg>
--b--
"""
