"""Access tokens of one account: when to get a new one, and what is known of the consent behind it.

    refresh_token         a person's consent, kept in the token file (`token_file`, `consent`)
    client_credentials    the application's own rights; nothing is kept on disk
    service account       a signed assertion for the account's user (RFC 7523); nothing is kept on disk

A token that was refused for good is not asked for again: a dead consent only when its file changes, everything else
after some minutes, for an administrator may have mended it elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from email_ingestion.atomic_files import write_private
from email_ingestion.errors import (
    AuthenticationFailed,
    ConfigurationError,
    OAuth2AuthenticationError,
    TokenRefreshError,
)
from email_ingestion.oauth2 import token_endpoint
from email_ingestion.oauth2.token_endpoint import Answer, TokenRefused
from email_ingestion.oauth2.token_file import DAY, Consent, TokenFile
from email_ingestion.settings import Account

RENEW = "run `python producer.py --auth-setup`"
RENEW_AHEAD = 600.0  # seconds before its end, or half its life if that is less: a session ends with its token
CONSENT_WARNING_SECONDS = 3 * DAY  # seconds before a consent ends
AGAIN_SECONDS = 600.0  # until a refusal that somebody may have mended elsewhere is tried again
ASSERTION_SECONDS = 3600
TESTING_DAYS = 7  # a consent to an app in Testing status
SILENT_SCOPES = frozenset(["offline_access", "openid", "profile", "email"])  # asked for, never granted by name
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"

State = Literal["valid", "expired", "reauthorize", "missing"]


@dataclass(frozen=True, slots=True)
class TokenStatus:
    """What may be said about a token without showing it."""

    state: State
    expires_at: datetime | None
    scopes: tuple[str, ...]
    problem: str | None = None
    consent_ends_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A usable access token; times in Unix seconds. `refresh_error` says that getting a newer one failed for now."""

    token: str
    expires_at: float
    life: float
    consent_ends_at: float | None = None
    refresh_error: TokenRefreshError | None = None

    def is_due(self, now: float) -> bool:
        """Whether it is time for a new one."""
        return now >= self.expires_at - min(RENEW_AHEAD, self.life / 2)


class _Kept(Protocol):
    """Where the tokens of a kind of grant come from."""

    def exclusive(self) -> AbstractContextManager[None]: ...
    def held(self) -> AccessToken | None: ...
    def refused(self) -> str | None: ...
    def renew(self) -> AccessToken: ...
    def describe(self) -> TokenStatus: ...


class TokenSource:
    """The access tokens of one account. Safe for several threads and, through a lock file, several processes."""

    def __init__(self, account: Account) -> None:
        """Raises ConfigurationError when a setting of the account cannot be right."""
        self._lock = threading.Lock()
        self._kept = _kept(account)

    def access(self, *, rejected: str | None = None) -> AccessToken:
        """A token; a new one when it is due, or when it is the `rejected` one.

        Raises OAuth2AuthenticationError when a person must act, TokenRefreshError when it may work later.
        """
        with self._lock, self._kept.exclusive():
            held, now = self._kept.held(), time.time()
            usable = held is not None and held.token != rejected and now < held.expires_at
            if held and usable and not held.is_due(now):
                return held
            refusal = self._kept.refused()
            if refusal:
                raise OAuth2AuthenticationError(refusal)
            try:
                return self._kept.renew()
            except TokenRefreshError as error:
                if held and usable:
                    return replace(held, refresh_error=error)
                raise

    def refresh(self) -> datetime:
        """Get a new token even if the present one is good or was refused; returns its expiry. Raises like `access`."""
        with self._lock, self._kept.exclusive():
            return _when(self._kept.renew().expires_at)

    def describe(self) -> TokenStatus:
        """The state of the token, without contacting anyone."""
        return self._kept.describe()


def client(account: Account, consent: Consent | None = None) -> dict[str, str]:
    """The form fields that name the OAuth2 client; a public client has no secret (RFC 8252, section 8.5).

    A consent belongs to the client it was given to; only that client's secret may have been replaced in the settings.
    """
    name, secret = account.google_client_id, account.google_client_secret
    if consent and (consent.client_id != name or not secret):
        name, secret = consent.client_id, consent.client_secret
    fields = {"client_id": name or ""}
    return fields | {"client_secret": secret} if secret else fields


def missing_scope(requested: str, granted: tuple[str, ...] | None) -> str | None:
    """The first scope that was asked for and not granted; `granted` None means all of them."""
    if granted is None:
        return None
    have = {scope.casefold() for scope in granted}
    missing = (each for each in requested.split() if each.casefold() not in have and each not in SILENT_SCOPES)
    return next(missing, None)


def token_file(account: Account) -> TokenFile:
    """Where the account's consent is kept."""
    return TokenFile(account.google_token_file, account.token_encryption_key, RENEW)


class _Consented:
    """Refreshes a person's consent."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._file = token_file(account)
        self._mark = _Mark(self._file.path)

    def exclusive(self) -> AbstractContextManager[None]:
        return self._file.locked()

    def held(self) -> AccessToken | None:
        return self._access(self._file.read())

    def refused(self) -> str | None:
        return self._mark.reason(self._fingerprint(self._file.read()))

    def renew(self) -> AccessToken:
        consent = self._file.read()
        form = {"grant_type": "refresh_token", "refresh_token": consent.refresh_token}
        try:
            answer = token_endpoint.ask(
                self._account.google_token_uri,
                form | client(self._account, consent) | {"scope": self._account.oauth2_scope},
            )
        except TokenRefused as error:
            message = f"the token endpoint refuses the token ({error}){_likely_cause(consent)}: {RENEW}"
            self._mark.put(self._fingerprint(consent), message, final=error.consent_gone)
            raise OAuth2AuthenticationError(message) from error
        missing = missing_scope(self._account.oauth2_scope, answer.scopes)
        if missing:
            message = f"the granted scopes lack {missing}: {RENEW}"
            self._mark.put(self._fingerprint(consent), message, final=True)
            raise OAuth2AuthenticationError(message)
        renewed = consent.renewed(answer)
        self._file.write(renewed, self._account.google_token_uri)
        self._mark.lift()
        access = self._access(renewed)
        assert access is not None  # noqa: S101 - it has just been given
        return access

    def describe(self) -> TokenStatus:
        try:
            consent = self._file.read()
        except AuthenticationFailed as error:
            return TokenStatus("missing", None, (), str(error))
        problem = self._mark.reason(self._fingerprint(consent), ever=True)
        missing = missing_scope(self._account.oauth2_scope, consent.scopes)
        if missing:
            problem = f"the token lacks the scope {missing}: {RENEW}"
        valid = bool(consent.token) and time.time() < consent.expires_at
        state: State = "reauthorize" if problem else ("valid" if valid else "expired")
        end = self._end(consent)
        return TokenStatus(
            state,
            _when(consent.expires_at) if consent.expires_at else None,
            consent.scopes,
            problem,
            None if end is None else _when(end),
        )

    def _access(self, consent: Consent) -> AccessToken | None:
        if not consent.token:
            return None
        return AccessToken(consent.token, consent.expires_at, consent.life, self._end(consent))

    def _end(self, consent: Consent) -> float | None:
        return consent.end(self._account.oauth2_consent_days)

    def _fingerprint(self, consent: Consent) -> str:
        sent = client(self._account, consent) | {"refresh_token": consent.refresh_token}
        return hashlib.sha256(json.dumps(sent, sort_keys=True).encode()).hexdigest()


class _Mark:
    """A file beside the token file that says it was refused, for `--info` and for every process; names no token."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(path.name + ".dead")

    def put(self, fingerprint: str, message: str, *, final: bool) -> None:
        again = None if final else time.time() + AGAIN_SECONDS
        write_private(self._path, json.dumps({"of": fingerprint, "message": message, "again": again}) + "\n")

    def lift(self) -> None:
        self._path.unlink(missing_ok=True)

    def reason(self, fingerprint: str, *, ever: bool = False) -> str | None:
        """Why the token of that fingerprint was refused, as long as it is not to be tried again, or `ever`."""
        try:
            mark = json.loads(self._path.read_text())
            holds = ever or mark["again"] is None or time.time() < mark["again"]
            return str(mark["message"]) if mark["of"] == fingerprint and holds else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


class _OnDemand:
    """Gets a token whenever one is needed; `form` makes the request, and may raise OAuth2AuthenticationError."""

    def __init__(self, account: Account, form: Callable[[], dict[str, str]], cure: str) -> None:
        self._account = account
        self._form = form
        self._cure = cure
        self._access: AccessToken | None = None
        self._refusal: tuple[str, float] | None = None

    def exclusive(self) -> AbstractContextManager[None]:
        return nullcontext()

    def held(self) -> AccessToken | None:
        return self._access

    def refused(self) -> str | None:
        message, again = self._refusal or ("", 0.0)
        return message if time.monotonic() < again else None

    def renew(self) -> AccessToken:
        try:
            answer: Answer = token_endpoint.ask(self._account.google_token_uri, self._form())
        except TokenRefused as error:
            message = f"the token endpoint refuses the application ({error}): {self._cure}"
            self._refusal = (message, time.monotonic() + AGAIN_SECONDS)
            raise OAuth2AuthenticationError(message) from error
        self._access = AccessToken(answer.access_token, time.time() + answer.life, answer.life)
        return self._access

    def describe(self) -> TokenStatus:
        """Nothing is kept: what can be told is whether a request could be made."""
        try:
            self._form()
        except AuthenticationFailed as error:
            return TokenStatus("missing", None, (), str(error))
        held = self._access
        return TokenStatus("valid", _when(held.expires_at) if held else None, (self._account.oauth2_scope,))


def _kept(account: Account) -> _Kept:
    path = account.google_service_account_file
    if path:
        cure = "check the service account's domain-wide delegation in the Google Workspace admin console"
        return _OnDemand(account, lambda: _assertion(account, path), cure)
    if account.oauth2_grant == "client_credentials":
        if not account.google_client_id or not account.google_client_secret:
            raise ConfigurationError(
                "OAUTH2_GRANT=client_credentials needs GOOGLE_CLIENT_ID and GOOGLE_CLIENT_SECRET, the application's own"
            )
        form = {"grant_type": "client_credentials", "scope": account.oauth2_scope} | client(account)
        cure = "check GOOGLE_CLIENT_ID, GOOGLE_CLIENT_SECRET and the application's permissions"
        return _OnDemand(account, lambda: form, cure)
    return _Consented(account)


def _assertion(account: Account, path: Path) -> dict[str, str]:
    """A request in the name of the account's user, signed with the key of the service account (RFC 7523)."""
    from google.auth import crypt, jwt  # noqa: PLC0415 - large, and only service accounts sign

    try:
        info: dict[str, Any] = json.loads(path.read_text())
        signer = crypt.RSASigner.from_service_account_info(info)  # type: ignore[no-untyped-call]
        issuer = str(info["client_email"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OAuth2AuthenticationError(
            f"GOOGLE_SERVICE_ACCOUNT_FILE {path} is no service account key: download its JSON key again"
        ) from error
    now = int(time.time())
    claims = {
        "iss": issuer,
        "sub": account.imap_user,
        "scope": account.oauth2_scope,
        "aud": account.google_token_uri,
        "iat": now,
        "exp": now + ASSERTION_SECONDS,
    }
    return {"grant_type": JWT_BEARER, "assertion": jwt.encode(signer, claims).decode()}  # type: ignore[no-untyped-call]


def _likely_cause(consent: Consent) -> str:
    """Google does not say why a refresh token died; its age gives the commonest cause away."""
    age = (time.time() - consent.consented_at) / DAY if consent.consented_at else 0.0
    if TESTING_DAYS - 0.5 < age < TESTING_DAYS + 1:
        return ", 7 days after the consent, as for apps in Testing status, so publish the app"
    return ""


def _when(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
