"""Translates an IMAP server's refusal (NO, BAD, BYE) into one of our errors, by its text alone.

The texts are Gmail's; other servers use the response codes of RFC 5530.

    Session expired                                   SessionExpired       reconnect at once
    UNAVAILABLE, System Error, what else may pass     IMAPConnectionError  back off
    Too many simultaneous connections, [LIMIT]        IMAPThrottledError   30 s, doubling to 15 min
    OVERQUOTA, exceeded command or bandwidth limits   IMAPLockedOut        an hour, doubling to a day, over restarts too
    NONEXISTENT                                       MailboxGone          list the mailboxes again
    BAD                                               IMAPCommandRefused   our fault; now and then
    some messages could not be fetched                MessagesRefused      keep the others, fetch these one by one
    invalid credentials                               TokenRejected        one forced refresh, then a person
    Lookup failed                                     LookupFailed         three times, then a person
    WEBALERT, log in via your web browser             WebLoginRequired     a person; looked at hourly
    Application-specific password required            AuthenticationFailed a person
"""

from __future__ import annotations

import json
import re
from typing import Any

from email_ingestion.errors import (
    AuthenticationFailed,
    EmailIngestionError,
    IMAPCommandRefused,
    IMAPConnectionError,
    IMAPLockedOut,
    IMAPThrottledError,
    OAuth2AuthenticationError,
    SessionExpired,
)

OVERQUOTA_SECONDS = 3600.0  # a suspension lasts an hour at least
CROWDED_SECONDS = 30.0

_OVERQUOTA = re.compile(r"OVERQUOTA|exceeded command or bandwidth limits", re.IGNORECASE)
_CROWDED = re.compile(r"Too many simultaneous connections|\[LIMIT\]|\[INUSE\]", re.IGNORECASE)
_PASSING = re.compile(r"UNAVAILABLE|Temporary|SERVERBUG|System Error", re.IGNORECASE)
_BROWSER = re.compile(r"WEBALERT|web browser|Web login required", re.IGNORECASE)
_APP_PASSWORD = re.compile(r"Application-specific password", re.IGNORECASE)
_SWITCHED_OFF = re.compile(r"not enabled for IMAP|IMAP access is disabled", re.IGNORECASE)
_EXPIRED = re.compile(r"Session expired", re.IGNORECASE)
_GONE = re.compile(r"NONEXISTENT|Unknown Mailbox", re.IGNORECASE)
_BAD = re.compile(r"command error: BAD|Could not parse command")  # imaplib's words around a tagged BAD, and Gmail's
_OF_A_MESSAGE = re.compile(r"could not be FETCHed|System Error", re.IGNORECASE)
_NOT_OF_A_MESSAGE = re.compile(r"UNAVAILABLE|Temporary|Session expired", re.IGNORECASE)


class TokenRejected(OAuth2AuthenticationError):
    """The access token is not accepted; a fresh one may be."""


class LookupFailed(OAuth2AuthenticationError):
    """The token lacks the scope or belongs to another user; at times it is the server that cannot look it up."""


class WebLoginRequired(OAuth2AuthenticationError):
    """The owner must confirm the login in a browser; nothing else helps."""


class MailboxGone(IMAPConnectionError):
    """The mailbox was deleted, hidden or renamed since it was listed."""


class MessagesRefused(IMAPConnectionError):
    """A FETCH ended without some of its messages; `found` is the data that came, by UID."""

    def __init__(self, message: str, found: dict[int, dict[bytes, Any]]) -> None:
        super().__init__(message)
        self.found = found


def translate(error: Exception, action: str) -> EmailIngestionError:
    """Return our error for a NO, BAD or BYE; `action` completes "cannot … the IMAP server"."""
    text = _readable(error)
    if _EXPIRED.search(text):
        return SessionExpired("the IMAP session expired")
    limited = _limited(text)
    if limited:
        return limited
    if _BAD.search(text):
        return IMAPCommandRefused(f"the IMAP server does not understand us, please report it: cannot {action}: {text}")
    if _GONE.search(text):
        return MailboxGone(f"the mailbox is gone: {text}")
    return IMAPConnectionError(f"cannot {action} the IMAP server: {text}")


def concerns_messages(error: Exception) -> bool:
    """Whether a FETCH failed because of some of its messages, so that the others can be fetched one by one."""
    text = _readable(error)
    if _limited(text) or _NOT_OF_A_MESSAGE.search(text):
        return False
    return bool(_OF_A_MESSAGE.search(text) or _BAD.search(text))


def translate_login(error: Exception, challenges: list[bytes], *, oauth2: bool) -> EmailIngestionError:
    """Return our error for a refused login; `challenges` are the JSON error challenges of XOAUTH2."""
    text = _readable(error)
    limited = _limited(text)
    return limited or _needs_person(text) or _not_checked(text) or _credentials_refused(text, challenges, oauth2=oauth2)


def _needs_person(text: str) -> AuthenticationFailed | None:
    if _BROWSER.search(text):
        return WebLoginRequired("the mail server wants the owner to log in with a web browser: do so, then wait")
    if _APP_PASSWORD.search(text):
        return AuthenticationFailed(f"the mail server wants an app password, or OAuth2: {text}")
    if _SWITCHED_OFF.search(text):
        return AuthenticationFailed(f"the account, or its administrator, has IMAP switched off: {text}")
    return None


def _not_checked(text: str) -> IMAPConnectionError | None:
    if _BAD.search(text):
        return IMAPCommandRefused(f"the IMAP server does not understand us, please report it: {text}")
    if _PASSING.search(text):
        return IMAPConnectionError(f"the mail server cannot check the login now: {text}")
    return None


def _credentials_refused(text: str, challenges: list[bytes], *, oauth2: bool) -> AuthenticationFailed:
    if not oauth2:
        return AuthenticationFailed(f"the mail server refuses IMAP_USER and IMAP_PASSWORD: {text}")
    if _status(challenges) == "invalid_request" or "Lookup failed" in text:
        return LookupFailed(
            "Gmail refuses the token's scope or user: check IMAP_USER, then run `python producer.py --auth-setup`"
        )
    return TokenRejected("the mail server refuses the access token: run `python producer.py --auth-setup` if it lasts")


def _limited(text: str) -> IMAPThrottledError | None:
    if _OVERQUOTA.search(text):
        return IMAPLockedOut(f"the account is over its limits: {text}", OVERQUOTA_SECONDS)
    if _CROWDED.search(text):
        return IMAPThrottledError(f"too many connections to the account: {text}", CROWDED_SECONDS)
    return None


def _status(challenges: list[bytes]) -> str | None:
    """Return the status in the error challenge; it is a string, and the other keys vary."""
    try:
        return str(json.loads(challenges[-1]).get("status")) if challenges else None
    except (ValueError, AttributeError):
        return None


def _readable(error: Exception) -> str:
    """Return the server's text, which imapclient sometimes wraps in a repr of bytes."""
    return re.sub(r"^b['\"](.*)['\"]$", r"\1", " ".join(str(error).split()))[:300]
