"""What a server's refusal means: which of our errors it is. Pure text, no connection.

The texts are Gmail's; other servers use the response codes of RFC 5530.
"""

from __future__ import annotations

import json
import re

from email_ingestion.errors import (
    AuthenticationFailed,
    EmailIngestionError,
    IMAPConnectionError,
    IMAPThrottledError,
    OAuth2AuthenticationError,
    SessionExpired,
)

OVERQUOTA_SECONDS = 3600.0  # a suspension lasts an hour at least
CROWDED_SECONDS = 30.0

_OVERQUOTA = re.compile(r"OVERQUOTA|exceeded command or bandwidth limits", re.IGNORECASE)
_CROWDED = re.compile(r"Too many simultaneous connections|\[LIMIT\]|\[INUSE\]", re.IGNORECASE)
_PASSING = re.compile(r"UNAVAILABLE|Temporary|SERVERBUG|System Error", re.IGNORECASE)
_HUMAN = re.compile(r"WEBALERT|web browser|Application-specific password|Web login required", re.IGNORECASE)
_EXPIRED = re.compile(r"Session expired", re.IGNORECASE)


class TokenRejected(OAuth2AuthenticationError):
    """The access token is not accepted; a fresh one may be."""


def refused(error: Exception, doing: str) -> EmailIngestionError:
    """Our error for a NO, BAD or BYE that came while `doing` something."""
    text = _readable(error)
    if _EXPIRED.search(text):
        return SessionExpired("the IMAP session expired")
    return _limited(text) or IMAPConnectionError(f"cannot {doing} the IMAP server: {text}")


def login_refused(error: Exception, challenges: list[bytes], *, oauth2: bool) -> EmailIngestionError:
    """Our error for a login that was refused; `challenges` are the JSON ones of XOAUTH2."""
    text = _readable(error)
    limited = _limited(text)
    if limited:
        return limited
    if _HUMAN.search(text):
        return AuthenticationFailed(f"the mail server wants a person to act: {text}")
    if _PASSING.search(text):
        return IMAPConnectionError(f"the mail server cannot check the login now: {text}")
    if not oauth2:
        return AuthenticationFailed(f"the mail server refuses IMAP_USER and IMAP_PASSWORD: {text}")
    if _status(challenges) == "invalid_request" or "Lookup failed" in text:
        return OAuth2AuthenticationError(
            "Gmail refuses the token's scope or user: check IMAP_USER, then run `python producer.py --auth-setup`"
        )
    return TokenRejected("the mail server refuses the access token: run `python producer.py --auth-setup` if it lasts")


def _limited(text: str) -> IMAPThrottledError | None:
    if _OVERQUOTA.search(text):
        return IMAPThrottledError(f"the account is over its limits: {text}", OVERQUOTA_SECONDS)
    if _CROWDED.search(text):
        return IMAPThrottledError(f"too many connections to the account: {text}", CROWDED_SECONDS)
    return None


def _status(challenges: list[bytes]) -> str | None:
    """The status of the error challenge: a string, whose other keys vary."""
    try:
        return str(json.loads(challenges[-1]).get("status")) if challenges else None
    except (ValueError, AttributeError):
        return None


def _readable(error: Exception) -> str:
    """The server's words: imapclient wraps them in a repr of bytes at times."""
    return re.sub(r"^b['\"](.*)['\"]$", r"\1", " ".join(str(error).split()))[:300]
