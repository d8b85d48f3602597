"""The token file, which keeps a consent: google-auth's JSON with our own times beside it, encrypted if there is a key.

    plain       {"token": …, "refresh_token": …}
    encrypted   the same in Fernet (AES-128-CBC with HMAC-SHA256), by the first key; read with any of them

A plain file is encrypted at its next write, and a file of an older key gets the first one then.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from email_ingestion.atomic_files import file_lock, write_private
from email_ingestion.encryption import Cipher
from email_ingestion.errors import ConfigurationError, OAuth2AuthenticationError
from email_ingestion.oauth2.token_endpoint import DEFAULT_LIFETIME, TokenResponse
from email_ingestion.settings import Account

DAY = 86400.0
CONSENT_HINT = "run `python producer.py --auth-setup`"


@dataclass(frozen=True, slots=True)
class Consent:
    """A stored consent; times in Unix seconds, None where unknown."""

    client_id: str
    client_secret: str | None
    refresh_token: str
    scopes: tuple[str, ...]
    token: str | None = None
    expires_at: float = 0.0
    lifetime: float = DEFAULT_LIFETIME  # seconds the access token had when it was made
    consented_at: float | None = None
    ends_at: float | None = None  # when the refresh token dies, as the endpoint said

    def with_response(self, response: TokenResponse) -> Consent:
        """Return the consent with the access token of a response, and with its refresh token if it has one."""
        now = time.time()
        return replace(
            self,
            token=response.access_token,
            expires_at=now + response.lifetime,
            lifetime=response.lifetime,
            refresh_token=response.refresh_token or self.refresh_token,
            ends_at=self.ends_at if response.consent_lifetime is None else now + response.consent_lifetime,
        )

    def expiry(self, days: float | None) -> float | None:
        """Return when the consent ends: as the endpoint said, else `days` after it was given."""
        if self.ends_at is not None or days is None or self.consented_at is None:
            return self.ends_at
        return self.consented_at + days * DAY


class TokenFile:
    """The token file of one account."""

    def __init__(self, account: Account) -> None:
        """Raises ConfigurationError when TOKEN_ENCRYPTION_KEY has no valid keys."""
        self.path = account.google_token_file
        self.unwritable: ConfigurationError | None = None  # as `locked` found it
        self._token_uri = account.google_token_uri
        keys = account.token_encryption_key
        self._cipher = Cipher(keys) if keys else None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock for reading and writing, for two processes must not both refresh; go on where there is none.

        `unwritable` then says why: a Kubernetes Secret, for one, is a folder that nobody can write.
        """
        with ExitStack() as held:
            try:
                held.enter_context(file_lock(self.path))
                self.unwritable = None
            except ConfigurationError as error:
                self.unwritable = error
            yield

    def read(self) -> Consent:
        """Return the stored consent. Raises OAuth2AuthenticationError when there is none or it cannot be read."""
        try:
            return parse_consent(self._decrypted(self.path.read_bytes()))
        except FileNotFoundError:
            raise OAuth2AuthenticationError(f"there is no token in {self.path}: {CONSENT_HINT}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise OAuth2AuthenticationError(f"the token file {self.path} is unreadable: {CONSENT_HINT}") from error

    def write(self, consent: Consent) -> None:
        """Replace the file, mode 0600. Raises ConfigurationError when its directory cannot be written."""
        text = consent_text(consent, self._token_uri)
        write_private(self.path, self._cipher.encrypt(text) if self._cipher else text)

    def _decrypted(self, content: bytes) -> bytes:
        if content.lstrip().startswith(b"{"):
            return content
        if not self._cipher:
            raise OAuth2AuthenticationError(f"the token file {self.path} is encrypted: set TOKEN_ENCRYPTION_KEY")
        try:
            return self._cipher.decrypt(content)
        except ValueError as error:
            raise OAuth2AuthenticationError(
                f"no key of TOKEN_ENCRYPTION_KEY opens the token file {self.path}: add the key it was written with"
            ) from error


def consent_text(consent: Consent, token_uri: str) -> str:
    """Return a consent as a token file holds it, in plain text."""
    return json.dumps(_dump(consent, token_uri), indent=2) + "\n"


def parse_consent(content: str | bytes) -> Consent:
    """Return the consent in what `consent_text` made. Raises ValueError, KeyError, TypeError and their like."""
    stored: Mapping[str, Any] = json.loads(content)
    scopes = stored.get("scopes") or ()
    return Consent(
        client_id=str(stored["client_id"]),
        client_secret=stored.get("client_secret") or None,
        refresh_token=str(stored["refresh_token"]),
        scopes=tuple(scopes.split() if isinstance(scopes, str) else scopes),
        token=stored.get("token"),
        expires_at=_seconds(stored.get("expiry")) or 0.0,
        lifetime=float(stored.get("life") or DEFAULT_LIFETIME),
        consented_at=_seconds(stored.get("consented_at")),
        ends_at=_seconds(stored.get("consent_ends_at")),
    )


def _dump(consent: Consent, token_uri: str) -> dict[str, Any]:
    """Return google-auth's own names first: other tools read them."""
    return {
        "token": consent.token,
        "refresh_token": consent.refresh_token,
        "token_uri": token_uri,
        "client_id": consent.client_id,
        "client_secret": consent.client_secret,
        "scopes": list(consent.scopes),
        "expiry": _iso(consent.expires_at),
        "life": consent.lifetime,
        "consented_at": _iso(consent.consented_at),
        "consent_ends_at": _iso(consent.ends_at),
    }


def _seconds(text: str | None) -> float | None:
    if not text:
        return None
    then = datetime.fromisoformat(text)
    return (then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp()


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
