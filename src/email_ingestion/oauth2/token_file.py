"""The file that keeps a consent: google-auth's JSON with our own times beside it, encrypted where there is a key.

    plain       {"token": …, "refresh_token": …}
    encrypted   the same in Fernet (AES-128-CBC with HMAC-SHA256), by the first key; read with any of them

A plain file is encrypted at its next write, and a file of an older key gets the first one then.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from email_ingestion.atomic_files import file_lock, write_private
from email_ingestion.errors import ConfigurationError, OAuth2AuthenticationError
from email_ingestion.oauth2.token_endpoint import USUAL_LIFE, Answer

DAY = 86400.0


@dataclass(frozen=True, slots=True)
class Consent:
    """A stored consent; times in Unix seconds, None where unknown."""

    client_id: str
    client_secret: str | None
    refresh_token: str
    scopes: tuple[str, ...]
    token: str | None = None
    expires_at: float = 0.0
    life: float = USUAL_LIFE  # seconds the access token had when it was made
    consented_at: float | None = None
    ends_at: float | None = None  # when the refresh token dies, as the endpoint said

    def renewed(self, answer: Answer) -> Consent:
        """The same consent with the access token of an answer, and its refresh token where that was replaced."""
        now = time.time()
        return replace(
            self,
            token=answer.access_token,
            expires_at=now + answer.life,
            life=answer.life,
            refresh_token=answer.refresh_token or self.refresh_token,
            ends_at=self.ends_at if answer.consent_life is None else now + answer.consent_life,
        )

    def end(self, days: float | None) -> float | None:
        """When the consent ends: as the endpoint said, else `days` after it was given."""
        if self.ends_at is not None or days is None or self.consented_at is None:
            return self.ends_at
        return self.consented_at + days * DAY


class TokenFile:
    """Reads and writes one token file. `keys` are Fernet keys, comma-separated, the first encrypts."""

    def __init__(self, path: Path, keys: str | None, renew: str) -> None:
        """`renew` says what an operator does to get a new consent; raises ConfigurationError for a key that is none."""
        self.path = path
        self._renew = renew
        self._cipher = _Cipher(keys) if keys else None

    def locked(self) -> AbstractContextManager[None]:
        """Hold this while reading and writing: two processes must not both refresh."""
        return file_lock(self.path)

    def read(self) -> Consent:
        """What the file holds; raises OAuth2AuthenticationError when there is none or it cannot be read."""
        try:
            return _consent(json.loads(self._opened(self.path.read_bytes())))
        except FileNotFoundError:
            raise OAuth2AuthenticationError(f"there is no token in {self.path}: {self._renew}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise OAuth2AuthenticationError(f"the token file {self.path} is unreadable: {self._renew}") from error

    def write(self, consent: Consent, token_uri: str) -> None:
        """Replace the file, mode 0600. Raises ConfigurationError when its directory cannot be written."""
        text = json.dumps(_stored(consent, token_uri), indent=2) + "\n"
        write_private(self.path, self._cipher.close(text) if self._cipher else text)

    def _opened(self, content: bytes) -> bytes:
        if content.lstrip().startswith(b"{"):
            return content
        if not self._cipher:
            raise OAuth2AuthenticationError(f"the token file {self.path} is encrypted: set TOKEN_ENCRYPTION_KEY")
        try:
            return self._cipher.open(content)
        except ValueError as error:
            raise OAuth2AuthenticationError(
                f"no key of TOKEN_ENCRYPTION_KEY opens the token file {self.path}: add the key it was written with"
            ) from error


class _Cipher:
    """Fernet, imported only where there are keys: it would be 6 MB of every producer."""

    def __init__(self, keys: str) -> None:
        from cryptography import fernet  # noqa: PLC0415 - see above

        self._refused = fernet.InvalidToken
        try:
            self._keys = fernet.MultiFernet([fernet.Fernet(key.strip()) for key in keys.split(",") if key.strip()])
        except ValueError as error:
            raise ConfigurationError(
                "TOKEN_ENCRYPTION_KEY is no Fernet key (32 bytes in URL-safe base64): make one with "
                "`python -m src.auth.oauth2_gmail --new-key`"
            ) from error

    def close(self, text: str) -> str:
        return self._keys.encrypt(text.encode()).decode()

    def open(self, content: bytes) -> bytes:
        """Raises ValueError when no key fits."""
        try:
            return self._keys.decrypt(content.strip())
        except self._refused as error:
            raise ValueError("no key fits") from error


def _consent(stored: Mapping[str, Any]) -> Consent:
    scopes = stored.get("scopes") or ()
    return Consent(
        client_id=str(stored["client_id"]),
        client_secret=stored.get("client_secret") or None,
        refresh_token=str(stored["refresh_token"]),
        scopes=tuple(scopes.split() if isinstance(scopes, str) else scopes),
        token=stored.get("token"),
        expires_at=_seconds(stored.get("expiry")) or 0.0,
        life=float(stored.get("life") or USUAL_LIFE),
        consented_at=_seconds(stored.get("consented_at")),
        ends_at=_seconds(stored.get("consent_ends_at")),
    )


def _stored(consent: Consent, token_uri: str) -> dict[str, Any]:
    """The names of google-auth's own files first: other tools read them."""
    return {
        "token": consent.token,
        "refresh_token": consent.refresh_token,
        "token_uri": token_uri,
        "client_id": consent.client_id,
        "client_secret": consent.client_secret,
        "scopes": list(consent.scopes),
        "expiry": _iso(consent.expires_at),
        "life": consent.life,
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
