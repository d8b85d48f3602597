"""Access tokens of one account: when to get a new one, and the state of the consent behind it.

    refresh_token         a person's consent, kept in the token file (`token_file`, `consent`)
    client_credentials    the application's own rights; nothing is kept on disk
    service account       an assertion for the account's user, signed by the application (RFC 7523); likewise

A token that was refused for good is not requested again: a dead consent only when its file changes, everything else
after some minutes, for an administrator may have mended it elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
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
from email_ingestion.oauth2.token_endpoint import TokenRefused, missing_scope, request_token
from email_ingestion.oauth2.token_file import CONSENT_HINT, DAY, Consent, TokenFile
from email_ingestion.settings import Account

REFRESH_AHEAD_SECONDS = 600.0  # before the end, or half the lifetime if that is less: a session ends with its token
CONSENT_WARNING_SECONDS = 3 * DAY  # before a consent ends
RETRY_REFUSED_SECONDS = 600.0  # until a refusal that may have been mended elsewhere is tried again
ASSERTION_SECONDS = 3600
TESTING_DAYS = 7  # the life of a consent to an app in Testing status
CLIENT_HINT = (
    "compare GOOGLE_CLIENT_ID and GOOGLE_CLIENT_SECRET with those in the provider's console, a new consent changes "
    "nothing; a change in .env or its files is taken up when the token ends, any by `email-ingestion restart producer`"
)
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"

State = Literal["valid", "expired", "reauthorize", "client refused", "missing"]


@dataclass(frozen=True, slots=True)
class TokenStatus:
    """The state of a token, without the token."""

    state: State
    expires_at: datetime | None
    scopes: tuple[str, ...]
    problem: str | None = None
    consent_ends_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A usable access token; times in Unix seconds.

    `refresh_error` is set when getting a newer one failed, `save_error` when newer ones stay in memory.
    """

    token: str
    expires_at: float
    lifetime: float  # seconds
    consent_ends_at: float | None = None
    refresh_error: TokenRefreshError | OAuth2AuthenticationError | None = None
    save_error: ConfigurationError | None = None

    def is_due(self, now: float) -> bool:
        """Whether it is time for a new one."""
        return now >= self.expires_at - min(REFRESH_AHEAD_SECONDS, self.lifetime / 2)


class TokenSource:
    """The access tokens of one account. Safe for several threads and, through a lock file, several processes."""

    def __init__(self, account: Account) -> None:
        """Raises ConfigurationError when a setting of the account cannot be right."""
        self._lock = threading.Lock()
        self._grant = _make_grant(account)

    def get_token(self, *, rejected: str | None = None) -> AccessToken:
        """Return a token; a new one when it is due, when it is the `rejected` one, or to try a new client secret.

        A token that still works is returned while the endpoint fails or refuses the client.

        Raises OAuth2AuthenticationError when a person must act, TokenRefreshError when it may work later.
        """
        with self._lock, self._grant.exclusive():
            current, now = self._grant.current(), time.time()
            usable = current is not None and current.token != rejected and now < current.expires_at
            if current and usable and not current.is_due(now) and not self._grant.has_new_secret():
                return current
            try:
                if refusal := self._grant.refusal():
                    raise refusal
                return self._grant.refresh()
            except (TokenRefreshError, OAuth2AuthenticationError) as error:
                lasting = isinstance(error, OAuth2AuthenticationError) and not error.is_of_client
                if current and usable and not lasting:
                    return replace(current, refresh_error=error)
                raise

    def refresh(self) -> datetime:
        """Get a new token even if the present one is good or was refused, and return its expiry.

        Raises like `get_token`.
        """
        with self._lock, self._grant.exclusive():
            return _to_datetime(self._grant.refresh().expires_at)

    def describe(self) -> TokenStatus:
        """Return the state of the token, without contacting anyone."""
        return self._grant.describe()


class _Grant(Protocol):
    """A kind of OAuth2 grant, and the token that it gave last."""

    def exclusive(self) -> AbstractContextManager[None]: ...
    def current(self) -> AccessToken | None: ...
    def refusal(self) -> OAuth2AuthenticationError | None: ...
    def has_new_secret(self) -> bool: ...
    def refresh(self) -> AccessToken: ...
    def describe(self) -> TokenStatus: ...


def _make_grant(account: Account) -> _Grant:
    path = account.google_service_account_file
    if path:
        hint = "check the service account's domain-wide delegation in the Google Workspace admin console"
        return _ClientCredentialsGrant(account, lambda: _assertion_form(account, path), hint)
    if account.oauth2_grant == "client_credentials":
        if not account.google_client_id or not account.google_client_secret:
            raise ConfigurationError(
                "OAUTH2_GRANT=client_credentials needs GOOGLE_CLIENT_ID and GOOGLE_CLIENT_SECRET, the application's own"
            )
        client = {"client_id": account.google_client_id, "client_secret": account.google_client_secret}
        form = {"grant_type": "client_credentials", "scope": account.oauth2_scope} | client
        hint = "check GOOGLE_CLIENT_ID, GOOGLE_CLIENT_SECRET and the application's permissions"
        return _ClientCredentialsGrant(account, lambda: form, hint)
    return _RefreshTokenGrant(account)


class _RefreshTokenGrant:
    """A person's consent, which the token file keeps (RFC 6749, section 6)."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._file = TokenFile(account)
        self._refusals = _RefusalCache(self._file.path)
        self._unsaved: tuple[str, Consent] | None = None  # what became of the file's consent of a fingerprint

    def exclusive(self) -> AbstractContextManager[None]:
        return self._file.locked()

    def _consent(self) -> Consent:
        """Return the consent of the file, or what became of it where the file cannot be written."""
        stored = self._file.read()
        if self._unsaved and self._unsaved[0] == self._fingerprint(stored):
            return self._unsaved[1]
        self._unsaved = None
        return stored

    def current(self) -> AccessToken | None:
        consent = self._consent()
        return self._access_token(consent, consent.token) if consent.token else None

    def refusal(self) -> OAuth2AuthenticationError | None:
        return self._refusals.find(self._fingerprint(self._consent()))

    def has_new_secret(self) -> bool:
        """Whether the settings have a client secret that the endpoint has not honoured yet: it may be mistyped."""
        consent = self._consent()
        return _client_fields(self._account, consent).get("client_secret") != consent.client_secret

    def refresh(self) -> AccessToken:
        consent = self._consent()
        form = {"grant_type": "refresh_token", "refresh_token": consent.refresh_token}
        form |= _client_fields(self._account, consent) | {"scope": self._account.oauth2_scope}
        try:
            response = request_token(self._account.google_token_uri, form)
        except TokenRefused as error:
            message = (
                f"the token endpoint refuses the OAuth2 client ({error}): {CLIENT_HINT}"
                if error.is_of_client
                else f"the token endpoint refuses the token ({error}){_likely_cause(consent)}: {CONSENT_HINT}"
            )
            refusal = OAuth2AuthenticationError(message, is_of_client=error.is_of_client)
            self._refusals.put(self._fingerprint(consent), refusal, final=error.is_grant_dead)
            raise refusal from error
        missing = missing_scope(self._account.oauth2_scope, response.scopes)
        if missing:
            refusal = OAuth2AuthenticationError(f"the granted scopes lack {missing}: {CONSENT_HINT}")
            self._refusals.put(self._fingerprint(consent), refusal, final=True)
            raise refusal
        renewed = replace(consent.with_response(response), client_secret=form.get("client_secret"))
        self._save(renewed)
        self._refusals.clear()
        return self._access_token(renewed, response.access_token)

    def _save(self, consent: Consent) -> None:
        """Write the file, or keep the consent in memory where that is impossible, as in a Kubernetes Secret."""
        fingerprint = self._unsaved[0] if self._unsaved else self._fingerprint(self._file.read())
        try:
            self._file.write(consent)
            self._unsaved = None
        except ConfigurationError as error:
            self._unsaved, self._file.unwritable = (fingerprint, consent), error

    def describe(self) -> TokenStatus:
        try:
            consent = self._consent()
        except AuthenticationFailed as error:
            return TokenStatus("missing", None, (), str(error))
        refusal = self._refusals.find(self._fingerprint(consent), expired_too=True)
        problem = str(refusal) if refusal else None
        missing = missing_scope(self._account.oauth2_scope, consent.scopes)
        if missing:
            problem = f"the token lacks the scope {missing}: {CONSENT_HINT}"
        valid = bool(consent.token) and time.time() < consent.expires_at
        state: State = "reauthorize" if problem else ("valid" if valid else "expired")
        if refusal and refusal.is_of_client and not missing:
            state = "client refused"
        ends_at = consent.expiry(self._account.oauth2_consent_days)
        return TokenStatus(
            state,
            _to_datetime(consent.expires_at) if consent.expires_at else None,
            consent.scopes,
            problem,
            None if ends_at is None else _to_datetime(ends_at),
        )

    def _access_token(self, consent: Consent, token: str) -> AccessToken:
        ends_at = consent.expiry(self._account.oauth2_consent_days)
        return AccessToken(token, consent.expires_at, consent.lifetime, ends_at, save_error=self._file.unwritable)

    def _fingerprint(self, consent: Consent) -> str:
        sent = _client_fields(self._account, consent) | {"refresh_token": consent.refresh_token}
        return hashlib.sha256(json.dumps(sent, sort_keys=True).encode()).hexdigest()


class _RefusalCache:
    """A file beside the token file that remembers a refusal, for `--info` and for every process; it holds no token."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(path.name + ".dead")
        self._unsaved: str | None = None  # where the folder cannot be written

    def put(self, fingerprint: str, error: OAuth2AuthenticationError, *, final: bool) -> None:
        retry_at = None if final else time.time() + RETRY_REFUSED_SECONDS
        record = {"of": fingerprint, "message": str(error), "client": error.is_of_client, "again": retry_at}
        self._unsaved = json.dumps(record) + "\n"
        with suppress(ConfigurationError):
            write_private(self._path, self._unsaved)
            self._unsaved = None

    def clear(self) -> None:
        self._unsaved = None
        with suppress(OSError):  # where it cannot be removed it cannot have been written
            self._path.unlink(missing_ok=True)

    def find(self, fingerprint: str, *, expired_too: bool = False) -> OAuth2AuthenticationError | None:
        """Return why the token of that fingerprint was refused; None once it may be tried again, or was not refused."""
        try:
            refusal = json.loads(self._unsaved or self._path.read_text())
            holds = expired_too or refusal["again"] is None or time.time() < refusal["again"]
            if refusal["of"] != fingerprint or not holds:
                return None
            return OAuth2AuthenticationError(str(refusal["message"]), is_of_client=bool(refusal.get("client")))
        except (OSError, ValueError, KeyError, TypeError):
            return None


class _ClientCredentialsGrant:
    """The application's own credentials: its secret, or an assertion that it signs. Tokens are kept in memory only."""

    def __init__(self, account: Account, make_form: Callable[[], dict[str, str]], hint: str) -> None:
        """`make_form` makes the request, or raises OAuth2AuthenticationError; `hint` ends the message of a refusal."""
        self._account = account
        self._make_form = make_form
        self._hint = hint
        self._current: AccessToken | None = None
        self._refusal: tuple[OAuth2AuthenticationError, float] | None = None  # and when to try again

    def exclusive(self) -> AbstractContextManager[None]:
        return nullcontext()

    def current(self) -> AccessToken | None:
        return self._current

    def refusal(self) -> OAuth2AuthenticationError | None:
        error, retry_at = self._refusal or (None, 0.0)
        if error is None or time.monotonic() >= retry_at:
            return None
        return OAuth2AuthenticationError(str(error), is_of_client=error.is_of_client)  # each raise adds to a traceback

    def has_new_secret(self) -> bool:
        return False  # each new process asks for a token anyway

    def refresh(self) -> AccessToken:
        try:
            response = request_token(self._account.google_token_uri, self._make_form())
        except TokenRefused as error:
            message = f"the token endpoint refuses the application ({error}): {self._hint}"
            of_client = error.is_of_client and not self._account.google_service_account_file  # it has no secret
            refusal = OAuth2AuthenticationError(message, is_of_client=of_client)
            self._refusal = (refusal, time.monotonic() + RETRY_REFUSED_SECONDS)
            raise refusal from error
        self._current = AccessToken(response.access_token, time.time() + response.lifetime, response.lifetime)
        return self._current

    def describe(self) -> TokenStatus:
        """Return "valid" when a request can be made: no token is kept."""
        try:
            self._make_form()
        except AuthenticationFailed as error:
            return TokenStatus("missing", None, (), str(error))
        expires_at = _to_datetime(self._current.expires_at) if self._current else None
        return TokenStatus("valid", expires_at, (self._account.oauth2_scope,))


def _client_fields(account: Account, consent: Consent) -> dict[str, str]:
    """Return the form fields that name the OAuth2 client; a public client has no secret (RFC 8252, section 8.5).

    A consent belongs to the client it was given to; only that client's secret may have been replaced in the settings.
    """
    client_id, secret = account.google_client_id, account.google_client_secret
    if consent.client_id != client_id or not secret:
        client_id, secret = consent.client_id, consent.client_secret
    fields = {"client_id": client_id or ""}
    return fields | {"client_secret": secret} if secret else fields


def _assertion_form(account: Account, path: Path) -> dict[str, str]:
    """Return a request in the name of the account's user, signed with the service account's key (RFC 7523)."""
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
    """Guess the commonest cause from the consent's age: Google does not say why a refresh token died."""
    age = (time.time() - consent.consented_at) / DAY if consent.consented_at else 0.0
    if TESTING_DAYS - 0.5 < age < TESTING_DAYS + 1:
        return ", 7 days after the consent, as for apps in Testing status, so publish the app"
    return ""


def _to_datetime(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
