"""A game day's scenarios, driven over HTTP as on a sandbox of its own process."""

from __future__ import annotations

import socket
import urllib.parse

import pytest

from gmail_sandbox.gameday import (
    SCENARIOS,
    SandboxUnavailable,
    arm_scenario,
    disarm_scenario,
    give_consent,
    revoke_consent,
)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_ends_what_it_armed(sandbox, name):
    arm_scenario(sandbox.control_url, name)
    disarm_scenario(sandbox.control_url, name)
    assert sandbox.call(lambda s: s.backend.faults.armed()) == []


def test_an_unreachable_server_takes_no_connections(sandbox, client):
    arm_scenario(sandbox.control_url, "imap-unreachable")
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((sandbox.imap_host, sandbox.imap_port), timeout=5)
    disarm_scenario(sandbox.control_url, "imap-unreachable")
    with pytest.raises(client.AbortError):
        client.noop()


def test_a_consent_is_taken_back_and_given_again(sandbox):
    token = sandbox.refresh_token()
    revoke_consent(sandbox.token_uri, token)
    assert sandbox.call(lambda s: s.backend.tokens.find_refresh(token)) is None
    fields = {
        "client_id": sandbox.client_id,
        "redirect_uri": "http://127.0.0.1:54321/",
        "response_type": "code",
        "scope": "https://mail.google.com/",
        "access_type": "offline",
        "state": "s",
    }
    redirect = give_consent(f"{sandbox.auth_uri}?{urllib.parse.urlencode(fields)}")
    assert redirect.startswith("http://127.0.0.1:54321/?state=s&code=")


def test_a_refusal_and_a_missing_sandbox_are_one_error(sandbox):
    with pytest.raises(SandboxUnavailable, match=r"HTTP 400.*invalid_token"):
        revoke_consent(sandbox.token_uri, "no-token")
    with pytest.raises(SandboxUnavailable, match="HTTP 400"):
        give_consent(sandbox.auth_uri)
    with pytest.raises(SandboxUnavailable):
        arm_scenario("http://127.0.0.1:1", "imap-unreachable")
