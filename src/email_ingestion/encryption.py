"""Fernet (AES-128-CBC with HMAC-SHA256) with the keys of TOKEN_ENCRYPTION_KEY: for token files and stored accounts."""

from __future__ import annotations

from email_ingestion.errors import ConfigurationError

NEW_KEY = "`python -m src.auth.oauth2_gmail --new-key`"


class Cipher:
    """Fernet, imported only where there are keys: it would be 6 MB of every producer."""

    def __init__(self, keys: str) -> None:
        """Take comma-separated Fernet keys; the first one encrypts, and any of them decrypts.

        Raises ConfigurationError for what is no key.
        """
        from cryptography import fernet  # noqa: PLC0415 - see above

        self._invalid_token = fernet.InvalidToken
        try:
            self._keys = fernet.MultiFernet([fernet.Fernet(key.strip()) for key in keys.split(",") if key.strip()])
        except ValueError as error:
            raise ConfigurationError(
                f"TOKEN_ENCRYPTION_KEY is no Fernet key (32 bytes in URL-safe base64): make one with {NEW_KEY}"
            ) from error

    def encrypt(self, text: str) -> str:
        """Return the text encrypted by the first key, in base64."""
        return self._keys.encrypt(text.encode()).decode()

    def decrypt(self, content: bytes) -> bytes:
        """Return what was encrypted. Raises ValueError when no key fits."""
        try:
            return self._keys.decrypt(content.strip())
        except self._invalid_token as error:
            raise ValueError("no key fits") from error


def cipher_of(keys: str | None) -> Cipher:
    """Return the cipher for what the database keeps secret.

    Raises ConfigurationError where there is no key: nothing secret is stored in plain text there.
    """
    if not keys:
        raise ConfigurationError(
            "set TOKEN_ENCRYPTION_KEY: the database keeps passwords, client secrets and consents encrypted only; "
            f"make a key with {NEW_KEY}"
        )
    return Cipher(keys)
