"""The OAuth2 tokens that the sandbox issued, and the assertions of service accounts that it accepts.

Refresh and access tokens are saved, so that a client keeps its login over a restart of the sandbox.
"""

from __future__ import annotations

import base64
import hashlib
import math
import secrets
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from gmail_sandbox.state import State

MAIL_SCOPE = "https://mail.google.com/"
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_MAX_ASSERTION_SECONDS = 3600.0
_CLOCK_SKEW_SECONDS = 300.0


@dataclass(frozen=True)
class AccessGrant:
    """The grant behind an access token. Times in epoch seconds."""

    user: str
    scope: str
    issued_at: float
    expires_at: float
    refresh_token: str = ""

    @property
    def opens_mail(self) -> bool:
        """Tell whether IMAP accepts the scope: only the full one does."""
        return MAIL_SCOPE in self.scope.split()


@dataclass(frozen=True)
class RefreshGrant:
    """The grant behind a refresh token. It ends at `ends_at` in epoch seconds, or never when that is 0."""

    user: str
    scope: str
    client_id: str
    ends_at: float = 0.0


@dataclass(frozen=True)
class AuthorizationGrant:
    """An authorization code waiting for its exchange."""

    redirect_uri: str
    scope: str
    challenge: str
    method: str
    offline: bool

    def accepts_verifier(self, verifier: str) -> bool:
        """Check the PKCE verifier (RFC 7636 section 4.6); a grant without challenge needs none."""
        if not self.challenge:
            return not verifier
        if self.method == "plain":
            return secrets.compare_digest(verifier, self.challenge)
        digest = hashlib.sha256(verifier.encode()).digest()
        return secrets.compare_digest(base64.urlsafe_b64encode(digest).rstrip(b"=").decode(), self.challenge)


class TokenStore:
    """Issues, checks and revokes tokens."""

    def __init__(
        self, state: State, user: str, life: float, clock: Callable[[], float], consent_life: float = 0.0
    ) -> None:
        """Read back what was issued before; lives are in seconds, and a consent without one lasts."""
        self.life, self.consent_life = life, consent_life
        self._state, self._user, self._clock = state, user, clock
        self._codes: dict[str, AuthorizationGrant] = {}
        self._access = {token: AccessGrant(**facts) for token, facts in state.tokens("access")}  # type: ignore[arg-type]
        self._refresh = {token: RefreshGrant(**facts) for token, facts in state.tokens("refresh")}  # type: ignore[arg-type]

    def issue_code(self, code: AuthorizationGrant) -> str:
        """Return a new authorization code."""
        value = "4/sandbox-" + secrets.token_urlsafe(32)
        self._codes[value] = code
        return value

    def redeem(self, value: str) -> AuthorizationGrant | None:
        """Return the grant behind a code, only once."""
        return self._codes.pop(value, None)

    def issue_refresh(self, scope: str, client_id: str) -> str:
        """Return a new refresh token."""
        token = "1//sandbox-" + secrets.token_urlsafe(40)
        ends_at = self._clock() + self.consent_life if self.consent_life else 0.0
        self._refresh[token] = RefreshGrant(self._user, scope, client_id, ends_at)
        self._state.put_token(token, "refresh", asdict(self._refresh[token]))
        return token

    def issue_access(self, scope: str, refresh_token: str = "") -> tuple[str, AccessGrant]:
        """Return a new access token and its grant, and forget expired ones."""
        now = self._clock()
        for old in [token for token, facts in self._access.items() if facts.expires_at < now]:
            self._forget_access(old)
        token = "ya29.sandbox-" + secrets.token_urlsafe(48)
        self._access[token] = AccessGrant(self._user, scope, now, now + self.life, refresh_token)
        self._state.put_token(token, "access", asdict(self._access[token]))
        return token, self._access[token]

    def find_access(self, token: str) -> AccessGrant | None:
        """Return the grant behind an access token that is still valid."""
        facts = self._access.get(token)
        return facts if facts is not None and facts.expires_at > self._clock() else None

    def find_refresh(self, token: str) -> RefreshGrant | None:
        """Return the grant behind a refresh token that is still valid."""
        grant = self._refresh.get(token)
        return grant if grant is not None and not 0 < grant.ends_at < self._clock() else None

    def remaining_consent(self, token: str) -> float | None:
        """Return the seconds a refresh token still has, or None where it has no end."""
        grant = self._refresh.get(token)
        return grant.ends_at - self._clock() if grant is not None and grant.ends_at else None

    def revoke(self, token: str) -> bool:
        """Revoke an access or refresh token and, with it, the access tokens made from it."""
        if token in self._access:
            parent = self._access[token].refresh_token
            self._forget_access(token)
            return not parent or self.revoke(parent) or True
        if self._refresh.pop(token, None) is None:
            return False
        self._state.drop_token(token)
        for child in [name for name, facts in self._access.items() if facts.refresh_token == token]:
            self._forget_access(child)
        return True

    def drop_refresh(self, token: str) -> None:
        """Forget a refresh token but let the access tokens made from it live out."""
        self._refresh.pop(token, None)
        self._state.drop_token(token)

    def _forget_access(self, token: str) -> None:
        self._access.pop(token, None)
        self._state.drop_token(token)


@dataclass(frozen=True)
class ServiceAccount:
    """A service account with domain-wide delegation; `public_key` is the public half of its key in PEM format."""

    email: str
    public_key: str


class BadAssertion(Exception):
    """The assertion is refused. `args[0]` is the description in the token endpoint's `invalid_grant`."""


def read_assertion(assertion: str, account: ServiceAccount | None, now: float) -> dict[str, object]:
    """Return the claims of a signed assertion (RFC 7523) after checking signature and times.

    Args:
        assertion: A JSON Web Token, signed with RS256.
        account: The only service account whose signature is accepted.
        now: The sandbox's time in epoch seconds.

    Raises:
        BadAssertion: The token is malformed, not signed by `account`, or not valid now.
    """
    from google.auth import exceptions, jwt  # noqa: PLC0415 - a quarter of the time to import the sandbox

    try:
        issuer = jwt.decode(assertion, verify=False).get("iss")  # type: ignore[no-untyped-call]
    except (exceptions.MalformedError, ValueError) as error:
        raise BadAssertion("Invalid JWT") from error
    if account is None or issuer != account.email:
        raise BadAssertion("Invalid grant: account not found")
    try:
        # Times are checked below, by the sandbox's own clock.
        claims = jwt.decode(assertion, certs=account.public_key, clock_skew_in_seconds=math.inf)  # type: ignore[no-untyped-call]
    except (exceptions.InvalidValue, exceptions.MalformedError) as error:
        raise BadAssertion("Invalid JWT Signature.") from error
    issued_at, expires_at = float(claims["iat"]), float(claims["exp"])
    in_time = issued_at - _CLOCK_SKEW_SECONDS <= now <= expires_at
    if not in_time or expires_at - issued_at > _MAX_ASSERTION_SECONDS:
        raise BadAssertion(
            "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. "
            "Check your iat and exp values in the JWT claim."
        )
    return cast("dict[str, object]", claims)
