"""What a game day does to a sandbox that is a process of its own: arm a scenario, take a consent back, give it again.

`email-ingestion gameday` uses it, and the drills of the runbook arm the same scenarios.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx

from gmail_sandbox.faults import Option

_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class ScenarioFault:
    """One fault of a scenario; `count` is as in `POST /faults`."""

    name: str
    count: int | str | None = "default"
    options: Mapping[str, Option] = field(default_factory=dict)


SCENARIOS: Mapping[str, tuple[ScenarioFault, ...]] = {
    "imap-unreachable": (ScenarioFault("refuse_connections", options={"drop_sessions": True}),),
    "breaker-open": (ScenarioFault("greeting_bye", count=None), ScenarioFault("session_expiry")),
    "sessions-ended": (ScenarioFault("session_expiry"),),
}


class SandboxUnavailable(Exception):
    """The sandbox does not answer, or refuses. `args[0]` is the reason."""


def arm_scenario(control_url: str, name: str) -> None:
    """Arm every fault of a scenario; raise SandboxUnavailable."""
    for fault in SCENARIOS[name]:
        body = {"name": fault.name, "count": fault.count, "options": dict(fault.options)}
        _request("POST", f"{control_url}/faults", json=body)


def disarm_scenario(control_url: str, name: str) -> None:
    """Disarm every fault of a scenario; raise SandboxUnavailable."""
    for fault in SCENARIOS[name]:
        _request("DELETE", f"{control_url}/faults/{fault.name}")


def revoke_consent(token_uri: str, token: str) -> None:
    """Revoke a refresh token, as the owner of a mailbox can at any time; raise SandboxUnavailable.

    Args:
        token_uri: The token endpoint; the endpoint for revocation is beside it.
        token: The refresh token.
    """
    _request("POST", urlsplit(token_uri)._replace(path="/revoke").geturl(), data={"token": token})


def give_consent(authorization_url: str) -> str:
    """Open an authorization page, which asks nobody, and return where it redirects to; raise SandboxUnavailable."""
    location = _request("GET", authorization_url).headers.get("location")
    if location is None:
        raise SandboxUnavailable("the authorization page did not redirect")
    return str(location)


def _request(method: str, url: str, *, json: object = None, data: Mapping[str, str] | None = None) -> httpx.Response:
    try:
        response = httpx.request(method, url, json=json, data=data, timeout=_TIMEOUT_SECONDS, trust_env=False)
    except httpx.HTTPError as error:
        raise SandboxUnavailable(str(error)) from error
    if response.is_error:
        raise SandboxUnavailable(f"HTTP {response.status_code}: {response.text.strip()}")
    return response
