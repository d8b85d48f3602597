"""A consent that dies while nobody looks: the producer says so everywhere, and goes on once it is given anew."""

from __future__ import annotations

import json
from pathlib import Path

from gmail_sandbox import RunningSandbox
from tests.servers.processes import Place, token_of, until


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
