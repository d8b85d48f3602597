"""A consent that dies while nobody looks: the producer says so everywhere, and goes on once it is given anew."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from email_ingestion.cli.diagnostics import doctor
from email_ingestion.cli.oauth2 import oauth2
from email_ingestion.settings import Settings
from gmail_sandbox import RunningSandbox
from tests.servers.commands import command
from tests.servers.processes import Place, token_of, until
from tests.servers.web import Visitor, running_pages, web_settings


def _revoke(sandbox: RunningSandbox) -> None:
    def forget(running) -> None:
        book = running.backend.tokens
        for token in [*book._refresh, *book._access]:
            book.revoke(token)

    sandbox.call(forget)
    sandbox.arm_fault("session_expiry")


def test_a_dead_consent_alerts_and_a_new_one_is_picked_up_without_a_restart(here: Place, sandbox: RunningSandbox):
    producer = here.producer()
    until(lambda: producer.status()["accounts"][0]["watch"] == "idle", "the producer idles")
    _revoke(sandbox)
    until(lambda: producer.metric("email_ingestion_oauth2_reauth_required") == 1, "the metric tells")
    status, ready = producer.get("/ready")
    assert (status, json.loads(ready)["status"]) == (200, "degraded")
    assert "--auth-setup" in ready
    account = producer.status()["accounts"][0]
    assert (account["token_state"], account["reauth_required"]) == ("re-authorize", True)
    lines = [json.loads(line) for line in producer.log().splitlines() if '"operator_needed"' in line]
    assert {line["error_type"] for line in lines} == {"OAuth2AuthenticationError"}
    asked = sandbox.with_stats(lambda stats: stats.token_requests)
    sandbox.deliver(b"Subject: hello\r\n\r\nworld\r\n")
    Path(here.environment["GOOGLE_TOKEN_FILE"]).write_text(json.dumps(token_of(sandbox)))
    until(lambda: producer.metric("email_ingestion_emails_produced_total") == 1, "mail flows again")
    assert producer.metric("email_ingestion_oauth2_reauth_required") == 0
    assert producer.status()["accounts"][0]["token_state"] == "valid"
    assert sandbox.with_stats(lambda stats: stats.token_requests) == asked + 1


def test_a_mistyped_client_secret_is_named_and_the_right_one_is_taken_up_without_a_new_consent(
    here: Place, sandbox: RunningSandbox
):
    secret = here.folder / "client-secret"
    secret.write_text("mistyped\n")
    del here.environment["GOOGLE_CLIENT_SECRET"]
    here.set(GOOGLE_CLIENT_SECRET_FILE=secret)
    token = Path(here.environment["GOOGLE_TOKEN_FILE"])
    assert command(here, oauth2, "--refresh").returncode == 3
    secret.write_text("sandbox-secret\n")
    assert command(here, oauth2, "--refresh").returncode == 0
    secret.write_text("mistyped\n")  # while the access token works
    producer = here.producer()
    until(lambda: producer.status()["accounts"][0]["token_state"] == "client refused", "the state is seen")
    sandbox.deliver(b"Subject: one\r\n\r\nworld\r\n")
    until(lambda: producer.metric("email_ingestion_emails_produced_total") == 1, "mail flows while the token lasts")
    ready = producer.get("/ready")[1]
    assert "GOOGLE_CLIENT_SECRET" in ready
    assert "--auth-setup" not in ready
    assert producer.metric("email_ingestion_oauth2_reauth_required") == 0
    info = command(here, oauth2, "--info")
    assert (info.returncode, "client refused" in info.stdout, "GOOGLE_CLIENT_SECRET" in info.stdout) == (3, True, True)
    found = json.loads(command(here, doctor, "--json").stdout)["checks"]
    (of_token,) = [each for each in found if each["check"] == "account default token"]
    assert of_token["verdict"] == "failed"
    assert "secret is wrong: GOOGLE_CLIENT_ID, GOOGLE_CLIENT_SECRET" in of_token["cause"]

    sandbox.call(lambda running: running.backend.tokens._access.clear())
    sandbox.arm_fault("session_expiry")
    until(lambda: producer.status()["accounts"][0]["watch"] == "needs_operator", "it stands still")
    account = producer.status()["accounts"][0]
    assert (account["token_state"], account["reauth_required"]) == ("client refused", False)
    assert "its secret is wrong" in producer.get("/ready")[1]
    lines = [json.loads(line) for line in producer.log().splitlines() if '"operator_needed"' in line]
    assert {line["error_type"] for line in lines} == {"OAuth2AuthenticationError"}
    sandbox.deliver(b"Subject: two\r\n\r\nworld\r\n")
    before = json.loads(token.read_text())["refresh_token"]
    secret.write_text("sandbox-secret\n")
    until(lambda: producer.metric("email_ingestion_emails_produced_total") == 2, "mail flows again")
    assert producer.status()["accounts"][0]["token_state"] == "valid"
    assert json.loads(token.read_text())["refresh_token"] == before


def _pages_of(here: Place, sandbox: RunningSandbox, **changes: object) -> Settings:
    """The settings of a web process beside the producer."""
    mailbox = {
        "imap_host": "127.0.0.1",
        "imap_port": sandbox.imap_port,
        "imap_tls": False,
        "imap_user": sandbox.user,
        "google_client_id": "desktop-client",
        "google_client_secret": "desktop-secret",
        "google_token_file": Path(here.environment["GOOGLE_TOKEN_FILE"]),
        "google_token_uri": sandbox.token_uri,
        "google_auth_uri": sandbox.auth_uri,
    }
    return web_settings(here.folder, here.environment["REDIS_URL"], **(mailbox | changes))


def test_a_dead_consent_is_given_anew_in_the_browser_and_mail_flows(
    here: Place, sandbox: RunningSandbox, monkeypatch: pytest.MonkeyPatch
):
    here.set(GOOGLE_CLIENT_ID="desktop-client", GOOGLE_CLIENT_SECRET="desktop-secret")
    producer = here.producer()
    until(lambda: producer.status()["accounts"][0]["watch"] == "idle", "the producer idles")
    monkeypatch.chdir(here.folder)
    web = {"google_web_client_id": "sandbox-client", "google_web_client_secret": "sandbox-secret"}
    settings = _pages_of(here, sandbox, web_public_url="http://127.0.0.1:9", **web)
    _revoke(sandbox)
    until(lambda: producer.metric("email_ingestion_oauth2_reauth_required") == 1, "the metric tells")
    sandbox.deliver(b"Subject: hello\r\n\r\nworld\r\n")
    with running_pages(settings) as address, Visitor(address) as visitor:
        visitor.enter(settings)
        until(lambda: "authorize again" in visitor.get("/accounts").text, "the page tells")
        page = visitor.submit(visitor.get("/accounts/default"), "/accounts/default/authorize")
        (url,) = [each for each in page.text.split('"') if each.startswith(sandbox.auth_uri)]
        given = httpx.get(url.replace("&amp;", "&"))
        back = httpx.URL(given.headers["location"])
        assert str(back).startswith("http://127.0.0.1:9/oauth2/callback?")
        done = visitor.get(back.raw_path.decode())
        assert "default is authorized" in done.text
    until(lambda: producer.metric("email_ingestion_emails_produced_total") == 1, "mail flows again")
    assert producer.metric("email_ingestion_oauth2_reauth_required") == 0
    consent = json.loads(Path(here.environment["GOOGLE_TOKEN_FILE"]).read_text())
    assert consent["client_id"] == "sandbox-client"
    refreshed = here.run("-m", "email_ingestion", "auth", "--refresh")
    assert refreshed.returncode == 0, refreshed.stderr
