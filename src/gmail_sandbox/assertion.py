"""Signed assertions of a service account (RFC 7523): what one must say, and whether its signature holds (RS256).

The signature is checked with the account's public numbers: RSASSA-PKCS1-v1_5 (RFC 8017 section 8.2.2) needs no library.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass
from typing import cast

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_SHA256_INFO = bytes.fromhex("3031300d060960864801650304020105000420")  # the DER of DigestInfo for SHA-256
_LONGEST = 3600.0
_SKEW = 300.0


@dataclass(frozen=True)
class ServiceAccount:
    """A service account with domain-wide delegation, and the public half of its key."""

    email: str
    modulus: int
    exponent: int


class BadAssertion(Exception):
    """The assertion is refused; `name` is the error of the token endpoint."""

    def __init__(self, name: str, description: str) -> None:
        """Keep the parts of the answer."""
        super().__init__(description)
        self.name = name


def read_assertion(assertion: str, account: ServiceAccount | None, now: float) -> dict[str, object]:
    """Return the claims of an assertion that `account` signed; raise BadAssertion."""
    if account is None:
        raise BadAssertion("invalid_grant", "Invalid grant: account not found")
    try:
        head, body, signature = assertion.split(".")
        claims = cast("dict[str, object]", json.loads(_decoded(body)))
        signed = _holds(f"{head}.{body}".encode(), _decoded(signature), account)
    except (ValueError, binascii.Error) as error:
        raise BadAssertion("invalid_grant", "Invalid JWT") from error
    if claims.get("iss") != account.email:
        raise BadAssertion("invalid_grant", "Invalid grant: account not found")
    if not signed:
        raise BadAssertion("invalid_grant", "Invalid JWT Signature.")
    issued, ends = (float(cast("float", claims.get(name, 0))) for name in ("iat", "exp"))
    if not (issued - _SKEW <= now <= ends and ends - issued <= _LONGEST):
        raise BadAssertion(
            "invalid_grant",
            "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. "
            "Check your iat and exp values in the JWT claim.",
        )
    return claims


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _holds(message: bytes, signature: bytes, account: ServiceAccount) -> bool:
    size = (account.modulus.bit_length() + 7) // 8
    digest = _SHA256_INFO + hashlib.sha256(message).digest()
    expected = b"\x00\x01" + b"\xff" * (size - len(digest) - 3) + b"\x00" + digest
    found = pow(int.from_bytes(signature, "big"), account.exponent, account.modulus)
    return found.to_bytes(size, "big") == expected
