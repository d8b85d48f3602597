"""Access tokens: the token file, the refresh behind one lock per account, and what its failures mean.

The interactive consent is in `consent`; the token file is written there and here, 0600 and atomically.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import google.auth.exceptions
from google.auth.transport.requests import Request
from google.oauth2 import service_account
from google.oauth2.credentials import Credentials

from email_ingestion.errors import OAuth2AuthenticationError, TokenRefreshError
from email_ingestion.files import locked, write_private
from email_ingestion.settings import Account

SCOPE = "https://mail.google.com/"  # the only scope IMAP accepts for a user token
TOKEN_ENDPOINT_SECONDS = 10.0
RENEW = "run `python producer.py --auth-setup`"

# Answers of the token endpoint that waiting does not change; everything else may pass. google-auth's own
# `retryable` flag is wrong for HTML bodies, refused connections and time-outs.
FINAL = frozenset(
    ["admin_policy_enforced", "invalid_client", "invalid_grant", "invalid_rapt", "invalid_scope", "unauthorized_client"]
)

State = Literal["valid", "expired", "reauthorize", "missing"]


@dataclass(frozen=True, slots=True)
class Token:
    """What may be said about a token without showing it."""

    state: State
    expires_at: datetime | None
    scopes: tuple[str, ...]
    problem: str | None = None


class TokenSource:
    """The access tokens of one account. Safe for several threads and, through a lock file, several processes."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._path = account.google_token_file
        self._lock = threading.Lock()
        self._delegated: Any = None

    def access_token(self, *, rejected: str | None = None) -> tuple[str, float]:
        """A token and its expiry in Unix seconds; refreshed when it is due, or when it is the `rejected` one.

        Raises OAuth2AuthenticationError when a person must act, TokenRefreshError when it may work later.
        """
        with self._lock:
            if self._account.google_service_account_file:
                return self._delegation(rejected)
            with locked(self._path):
                credentials = self._read()
                if not credentials.valid or credentials.token == rejected:
                    self._refresh(credentials)
                return str(credentials.token), _unix(credentials.expiry)

    def refresh(self) -> datetime:
        """Get a new token even if the present one is good; returns its expiry. Raises like `access_token`."""
        with self._lock, locked(self._path):
            credentials = self._read()
            self._refresh(credentials)
            return datetime.fromtimestamp(_unix(credentials.expiry), UTC)

    def describe(self) -> Token:
        """The state of the token file, without contacting anyone."""
        if not self._path.exists():
            return Token("missing", None, (), f"there is no token in {self._path}: {RENEW}")
        try:
            credentials = self._read()
        except OAuth2AuthenticationError as error:
            return Token("missing", None, (), str(error))
        problem = _dead_mark(self._path)
        if SCOPE not in (credentials.scopes or ()):
            problem = f"the token lacks the scope {SCOPE}: {RENEW}"
        expires = credentials.expiry.replace(tzinfo=UTC) if credentials.expiry else None
        state: State = "reauthorize" if problem else ("valid" if credentials.valid else "expired")
        return Token(state, expires, tuple(credentials.scopes or ()), problem)

    def _read(self) -> Credentials:
        try:
            stored = json.loads(self._path.read_text())
            known = {name: stored[name] for name in ("refresh_token", "client_id", "client_secret")}
            expiry = datetime.fromisoformat(stored["expiry"].removesuffix("Z")) if stored.get("expiry") else None
        except FileNotFoundError:
            raise OAuth2AuthenticationError(f"there is no token in {self._path}: {RENEW}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise OAuth2AuthenticationError(f"the token file {self._path} is unreadable: {RENEW}") from error
        return Credentials(  # type: ignore[no-untyped-call] # google-auth has no annotations here
            token=stored.get("token"),
            # google-auth would ignore the file's own token_uri; the setting decides.
            token_uri=self._account.google_token_uri,
            scopes=stored.get("scopes"),
            expiry=expiry,
            **known,
        )

    def _refresh(self, credentials: Any) -> None:
        with _classified(self._path):
            credentials.refresh(partial(Request(), timeout=TOKEN_ENDPOINT_SECONDS))
        if credentials.granted_scopes and SCOPE not in credentials.granted_scopes:
            raise OAuth2AuthenticationError(f"the granted scopes lack {SCOPE}: {RENEW}")
        store(self._path, credentials)

    def _delegation(self, rejected: str | None) -> tuple[str, float]:
        if self._delegated is None:
            path = self._account.google_service_account_file
            try:
                key = service_account.Credentials.from_service_account_file(str(path), scopes=[SCOPE])  # type: ignore[no-untyped-call]
            except (OSError, ValueError) as error:
                raise OAuth2AuthenticationError(f"GOOGLE_SERVICE_ACCOUNT_FILE {path} is no key: {error}") from error
            self._delegated = key.with_subject(self._account.imap_user)
        if not self._delegated.valid or self._delegated.token == rejected:
            with _classified(None):
                self._delegated.refresh(partial(Request(), timeout=TOKEN_ENDPOINT_SECONDS))
        return self._delegated.token, _unix(self._delegated.expiry)


def store(path: Path, credentials: Any) -> None:
    """Write a token as google-auth's own JSON, readable by us alone; a fresh one lifts the mark of a dead one."""
    write_private(path, credentials.to_json())
    _mark(path).unlink(missing_ok=True)


@contextmanager
def _classified(path: Path | None) -> Iterator[None]:
    """Turn google-auth's errors into ours; a final one is remembered beside the token for `--info`."""
    try:
        yield
    except google.auth.exceptions.RefreshError as error:
        code = _code(error)
        if code not in FINAL:
            raise TokenRefreshError(f"the token endpoint failed: {code or _short(error)}") from error
        message = f"Google refuses the token ({code}): {RENEW}"
        if path:
            write_private(_mark(path), f"{message}\n")
        raise OAuth2AuthenticationError(message) from error
    except google.auth.exceptions.GoogleAuthError as error:
        raise TokenRefreshError(f"the token endpoint cannot be reached: {_short(error)}") from error


def _code(error: google.auth.exceptions.RefreshError) -> str | None:
    details = next((each for each in error.args[1:] if isinstance(each, dict)), {})
    if "reauthentication is needed" in str(error.args[0] if error.args else "").lower():
        return "invalid_rapt"  # google-auth swallows the dictionary in this case
    code = details.get("error")
    return code if isinstance(code, str) else None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _mark(path: Path) -> Path:
    return path.with_name(path.name + ".dead")


def _dead_mark(path: Path) -> str | None:
    """Why the token was refused for good, unless a newer one was written since."""
    mark = _mark(path)
    try:
        return mark.read_text().strip() if os.path.getmtime(mark) >= os.path.getmtime(path) else None
    except OSError:
        return None


def _unix(expiry: datetime | None) -> float:
    """google-auth keeps naive UTC."""
    return expiry.replace(tzinfo=UTC).timestamp() if expiry else time.time()
