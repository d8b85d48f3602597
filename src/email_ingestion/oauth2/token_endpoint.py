"""One question to an OAuth2 token endpoint and what its answer means (RFC 6749, sections 5.1 and 5.2).

Nothing is asked twice here: who asks decides when to ask again. Answers are judged by their error code alone, for
proxies answer with HTML and gateways with any status.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from email_ingestion.errors import OAuth2AuthenticationError, TokenRefreshError

if TYPE_CHECKING:
    import requests

ANSWER_SECONDS = 10.0
USUAL_LIFE = 3600.0  # seconds, where an answer does not say

# What waiting alone does not change; everything else may pass.
FINAL = frozenset(
    [
        *("access_denied", "admin_policy_enforced", "consent_required", "interaction_required", "invalid_client"),
        *("invalid_grant", "invalid_rapt", "invalid_request", "invalid_scope", "login_required"),
        *("unauthorized_client", "unsupported_grant_type"),
    ]
)
GONE = frozenset(["consent_required", "interaction_required", "invalid_grant", "invalid_rapt", "login_required"])


@dataclass(frozen=True, slots=True)
class Answer:
    """What a token endpoint gave; lives are in seconds from now."""

    access_token: str
    life: float
    scopes: tuple[str, ...] | None  # None: those that were asked for
    refresh_token: str | None
    consent_life: float | None  # `refresh_token_expires_in`: None where the endpoint sets no end


class TokenRefused(OAuth2AuthenticationError):
    """The endpoint refuses for good; `code` is its error, of `FINAL`."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def consent_gone(self) -> bool:
        """Whether the grant itself is dead, and not the client or the request wrong."""
        return self.code in GONE


def ask(uri: str, form: Mapping[str, str]) -> Answer:
    """The endpoint's answer to one request.

    Raises TokenRefused when a person must act, TokenRefreshError when it may work later.
    """
    import requests  # noqa: PLC0415 - 5 MB that password logins do without

    try:
        # Redirects are not followed: the form holds secrets.
        reply = requests.post(uri, data=dict(form), timeout=ANSWER_SECONDS, allow_redirects=False)
    except requests.RequestException as error:
        raise TokenRefreshError(f"the token endpoint cannot be reached: {type(error).__name__}") from error
    body = _json(reply)
    if reply.status_code == HTTPStatus.OK and isinstance(body.get("access_token"), str):
        return _answer(body)
    raise _refusal(reply.status_code, body)


def _json(reply: requests.Response) -> dict[str, Any]:
    try:
        body = reply.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _answer(body: dict[str, Any]) -> Answer:
    scope, refresh_token = body.get("scope"), body.get("refresh_token")
    return Answer(
        access_token=body["access_token"],
        life=_seconds(body.get("expires_in")) or USUAL_LIFE,
        scopes=tuple(scope.split()) if isinstance(scope, str) and scope else None,
        refresh_token=refresh_token if isinstance(refresh_token, str) and refresh_token else None,
        consent_life=_seconds(body.get("refresh_token_expires_in")),
    )


def _seconds(value: object) -> float | None:
    try:
        return max(0.0, float(str(value))) if value is not None else None
    except ValueError:
        return None


def _refusal(status: int, body: dict[str, Any]) -> Exception:
    code, subtype = body.get("error"), body.get("error_subtype")
    code = subtype if subtype == "invalid_rapt" else code
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR or code not in FINAL:
        return TokenRefreshError(f"the token endpoint failed: {_word(code) or f'HTTP {status}'}")
    description = str(body.get("error_description") or "")
    if code == "invalid_grant" and re.search(r"\b(iat|exp|time ?frame)\b", description):
        return TokenRefreshError("the token endpoint finds the assertion's time wrong: set this machine's clock")
    # A description may name the user; of Microsoft's only the number is shown, which its documentation explains.
    number = re.search(r"AADSTS\d+", description)
    return TokenRefused(f"{code}, {number[0]}" if number else str(code), str(code))


def _word(code: object) -> str | None:
    return code if isinstance(code, str) and re.fullmatch(r"[\w.-]{1,60}", code) else None
