"""A request to an OAuth2 token endpoint, and the meaning of its response (RFC 6749, sections 5.1 and 5.2).

Nothing is retried here: the caller decides when to ask again. Errors are judged by their error code alone, for proxies
answer with HTML and gateways with any status.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from email_ingestion.errors import OAuth2AuthenticationError, TokenRefreshError

TIMEOUT_SECONDS = 10.0  # of silence
DEADLINE_SECONDS = 30.0  # of a request, however slowly its answer comes
MAX_BYTES = 1024 * 1024
MAX_LIFETIME = 10 * 366 * 86400.0  # seconds
DEFAULT_LIFETIME = 3600.0  # seconds, where a response does not say
# RFC 6749, appendix A.12 and A.17; no token is longer than a header field may be.
TOKEN = re.compile(r"[\x20-\x7e]{1,65536}")
SILENT_SCOPES = frozenset(["offline_access", "openid", "profile", "email"])  # requested, but never named in a grant

# Errors that waiting alone does not change; every other one may pass.
PERMANENT_ERRORS = frozenset(
    [
        *("access_denied", "admin_policy_enforced", "consent_required", "interaction_required", "invalid_client"),
        *("invalid_grant", "invalid_rapt", "invalid_request", "invalid_scope", "login_required"),
        *("unauthorized_client", "unsupported_grant_type"),
    ]
)
CLIENT_ERRORS = frozenset(["invalid_client", "unauthorized_client"])
DEAD_GRANT_ERRORS = frozenset(
    ["consent_required", "interaction_required", "invalid_grant", "invalid_rapt", "login_required"]
)


@dataclass(frozen=True, slots=True)
class TokenResponse:
    """A token endpoint's successful response; lifetimes are in seconds from now."""

    access_token: str
    lifetime: float
    scopes: tuple[str, ...] | None  # None: the requested ones
    refresh_token: str | None
    consent_lifetime: float | None  # `refresh_token_expires_in`: None where the endpoint sets no end


class TokenRefused(OAuth2AuthenticationError):
    """The endpoint refuses for good; `code` is its error, one of PERMANENT_ERRORS.

    Where it refuses the client, no new consent changes that.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message, is_of_client=code in CLIENT_ERRORS)
        self.code = code

    @property
    def is_grant_dead(self) -> bool:
        """Whether the grant itself is dead, and not the client or the request wrong."""
        return self.code in DEAD_GRANT_ERRORS


def request_token(uri: str, form: Mapping[str, str]) -> TokenResponse:
    """Post `form` to the endpoint.

    Raises TokenRefused when a person must act, TokenRefreshError when it may work later.
    """
    import httpx  # noqa: PLC0415 - 4 MB that password logins do without

    from email_ingestion.http_requests import AnswerTooLate, AnswerTooLong, ask  # noqa: PLC0415 - with it comes httpx

    try:
        answer = ask("POST", uri, seconds=DEADLINE_SECONDS, silence=TIMEOUT_SECONDS, max_bytes=MAX_BYTES, form=form)
    except AnswerTooLate as error:
        message = f"the token endpoint has not sent its whole answer within {DEADLINE_SECONDS:.0f} s"
        raise TokenRefreshError(message) from error
    except AnswerTooLong as error:
        raise TokenRefreshError(f"the token endpoint's answer is not one: {error}") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise unreachable(error) from error
    return parse_response(answer.status, answer.content)


def unreachable(error: Exception) -> TokenRefreshError:
    """Return our error for a request that got no response; only its class is shown, for its text may hold the form."""
    return TokenRefreshError(f"the token endpoint cannot be reached: {type(error).__name__}")


def parse_response(status: int, content: bytes) -> TokenResponse:
    """Parse the endpoint's response. Raises as `request_token`."""
    body = _json_object(content)
    if status != HTTPStatus.OK or not isinstance(body.get("access_token"), str):
        raise _refusal(status, body)
    scope = body.get("scope")
    return TokenResponse(
        access_token=_token(body["access_token"]),
        lifetime=_seconds(body.get("expires_in")) or DEFAULT_LIFETIME,
        scopes=tuple(scope.split()) if isinstance(scope, str) and scope else None,
        refresh_token=_token(body["refresh_token"]) if body.get("refresh_token") else None,
        consent_lifetime=_seconds(body.get("refresh_token_expires_in")),
    )


def missing_scope(requested: str, granted: tuple[str, ...] | None) -> str | None:
    """Return the first requested scope that was not granted; `granted` None means that all were."""
    if granted is None:
        return None
    have = {scope.casefold() for scope in granted}
    missing = (scope for scope in requested.split() if scope.casefold() not in have and scope not in SILENT_SCOPES)
    return next(missing, None)


def _json_object(content: bytes) -> dict[str, Any]:
    if len(content) > MAX_BYTES:
        raise TokenRefreshError(f"the token endpoint's answer has more than {MAX_BYTES // 1024} KiB")
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _token(value: object) -> str:
    if not isinstance(value, str) or not TOKEN.fullmatch(value):
        raise TokenRefreshError("the token endpoint's answer holds a token that cannot be one")
    return value


def _seconds(value: object) -> float | None:
    """Return a lifetime; None where none is named. Some endpoints write it as a string."""
    try:
        seconds = float(value) if isinstance(value, int | float | str) else None
    except ValueError:
        return None
    except OverflowError:
        seconds = math.inf
    if seconds is not None and not math.isfinite(seconds):
        raise TokenRefreshError("the token endpoint's answer holds a lifetime without an end")
    return None if seconds is None else min(max(0.0, seconds), MAX_LIFETIME)


def _refusal(status: int, body: dict[str, Any]) -> Exception:
    code = "invalid_rapt" if body.get("error_subtype") == "invalid_rapt" else printable_code(body.get("error"))
    passing = status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    if passing or code not in PERMANENT_ERRORS:
        return TokenRefreshError(f"the token endpoint failed: {code or f'HTTP {status}'}")
    described = body.get("error_description")
    description = described if isinstance(described, str) else ""
    if code == "invalid_grant" and re.search(r"\b(iat|exp|time ?frame)\b", description):
        return TokenRefreshError("the token endpoint finds the assertion's time wrong: set this machine's clock")
    # A description may name the user; of Microsoft's only the number is shown, which its documentation explains.
    number = re.search(r"AADSTS\d+", description)
    parts = [str(code), number[0] if number else "", _client_fault(code, description)]
    return TokenRefused(", ".join(part for part in parts if part), str(code))


def _client_fault(code: str, description: str) -> str:
    """Say what is wrong with the client where the endpoint tells it."""
    if code not in CLIENT_ERRORS:
        return ""
    if "AADSTS7000222" in description or re.search(r"secret\b.*\bexpired", description, re.IGNORECASE):
        return "its secret has expired"
    if "AADSTS7000215" in description or re.search(r"client.?secret", description, re.IGNORECASE):
        return "its secret is wrong"
    return "its ID is not known" if re.search(r"client\b.*\bnot found", description, re.IGNORECASE) else ""


def printable_code(code: object) -> str | None:
    """Return an error code that may be shown; None where it is none."""
    return code if isinstance(code, str) and re.fullmatch(r"[\w.-]{1,60}", code) else None
