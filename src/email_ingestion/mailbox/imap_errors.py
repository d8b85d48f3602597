"""Translates an IMAP server's refusal (NO, BAD, BYE) into one of our errors; `server_answers` says what texts mean.

    session_ended   SessionExpired         reconnect at once
    temporary       IMAPConnectionError    back off
    throttled       IMAPThrottledError     the time it asks for, else 30 s, doubling to 15 min
    locked_out      IMAPLockedOut          an hour, doubling to a day, over restarts too
    gone            MailboxGone            list the mailboxes again
    credentials     AuthenticationFailed   a person; TokenRejected: one forced refresh before, LookupFailed: three tries
    browser         WebLoginRequired       a person; looked at hourly
    operator, bug   AuthenticationFailed at the login, else IMAPCommandRefused: a person; now and then

An unknown NO refuses the credentials at the login, and may pass elsewhere; an unknown BAD is an IMAPCommandRefused.
Every error quotes the server's own words.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from email_ingestion.errors import (
    READ_LENGTH,
    SERVER_SAYS,
    AuthenticationFailed,
    EmailIngestionError,
    IMAPCommandRefused,
    IMAPConnectionError,
    IMAPLockedOut,
    IMAPProtocolViolation,
    IMAPThrottledError,
    OAuth2AuthenticationError,
    SessionExpired,
    quote_server,
)
from email_ingestion.mailbox.server_answers import AnswerRule, asked_pause, judge

Refusal = TypeVar("Refusal", bound=EmailIngestionError)

OVERQUOTA_SECONDS = 3600.0  # a suspension lasts an hour at least
CROWDED_SECONDS = 30.0
READ_REPR = 5 * READ_LENGTH  # characters of an error: as many as the repr of what is read of a server's words may have
SHORTEST_NAME = 3  # characters from which a login name is hidden where a server quotes it

# imaplib's words around a tagged BAD, ours, and Gmail's
_BAD = re.compile(r"command error: BAD|^\w+ failed: BAD |Could not parse command")
_NOT_OF_A_MESSAGE = re.compile(r"UNAVAILABLE|Temporary|Session expired|not connected", re.IGNORECASE)
# What imaplib and imapclient put around a server's text.
_AROUND = re.compile(
    r"(?:command: \w+ => )?"
    r"(?:\w+ command error: (?:BAD|NO)\s*|(?!login|authenticat)[a-z_]+ failed: (?-i:NO |BAD )?)?(?P<text>.*)",
    re.DOTALL | re.IGNORECASE,
)
_OWN_WORDS = re.compile(
    r"socket error|unexpected (?:tagged )?response|got more than|command \w+ illegal|no CAPABILITY response"
    r"|server not IMAP4 compliant"
)
_BYE = re.compile(r"^\* (?:BYE|NO|BAD) ?")


class TokenRejected(OAuth2AuthenticationError):
    """The access token is not accepted; a fresh one may be."""


class LookupFailed(OAuth2AuthenticationError):
    """The token lacks the scope or belongs to another user; at times it is the server that cannot look it up."""


class WebLoginRequired(OAuth2AuthenticationError):
    """The owner must confirm the login in a browser; nothing else helps."""


class UnusableServer(IMAPCommandRefused):
    """What answers is no IMAP server, or lacks what reading mail takes."""


class MailboxGone(IMAPConnectionError):
    """The mailbox was deleted, hidden or renamed since it was listed."""


class MessageTooLong(IMAPProtocolViolation):
    """The server sends more for the message `uid` than it announced, if it says which; the connection is over."""

    def __init__(self, message: str, uid: int | None) -> None:
        super().__init__(message)
        self.uid = uid


class MessagesRefused(IMAPConnectionError):
    """A FETCH ended without some of its messages; `found` is the data that came, by UID."""

    def __init__(self, message: str, found: dict[int, dict[bytes, Any]]) -> None:
        super().__init__(message)
        self.found = found


def translate(error: Exception, action: str) -> EmailIngestionError:
    """Return our error for a NO, BAD or BYE; `action` completes "cannot … the IMAP server"."""
    text = _readable(error)
    if _OWN_WORDS.search(text):
        return IMAPConnectionError(f"cannot {action} the IMAP server: {text}")
    words, rule = quote_server(_server_text(text)), judge(_server_text(text))
    if rule is None or rule.meaning == "credentials":  # the next login shows whether they still hold
        if _BAD.search(text):
            return IMAPCommandRefused(f"the IMAP server does not accept a command: cannot {action} it: {words}")
        return IMAPConnectionError(f"cannot {action} the IMAP server: {words}")
    return _by_meaning(rule, words, text) or IMAPConnectionError(
        f"cannot {action} the IMAP server: {rule.says}: {words}"
    )


def concerns_messages(error: Exception) -> bool:
    """Whether a FETCH may have failed because of some of its messages: then they are fetched one by one."""
    text = _readable(error)
    rule = judge(_server_text(text))
    return (rule is None or rule.meaning in {"temporary", "bug"}) and not _NOT_OF_A_MESSAGE.search(text)


def translate_login(
    error: Exception, challenges: list[bytes], *, oauth2: bool, broke_off: bool = False
) -> EmailIngestionError:
    """Return our error for a login that failed; `challenges` are the JSON error challenges of XOAUTH2.

    `broke_off` tells that the server closed the connection instead of refusing the login.
    """
    text = _readable(error)
    if _OWN_WORDS.search(text):
        return IMAPConnectionError(f"cannot log in to the IMAP server: {text}")
    words, rule = quote_server(_server_text(text)), judge(_server_text(text))
    meaning = rule.meaning if rule else ""
    if rule and meaning in {"operator", "bug"}:
        return _with_remedy(AuthenticationFailed(f"{rule.says}: {words}"), rule)
    if rule and meaning not in {"credentials", "gone"}:
        known = _by_meaning(rule, words, text)
        return known or IMAPConnectionError(f"the mail server cannot check the login now: {words}")
    if meaning != "credentials" and broke_off:
        return IMAPConnectionError(f"the mail server broke off the login: {words}")
    if meaning != "credentials" and _BAD.search(text):
        return IMAPCommandRefused(f"the mail server does not accept the login command: {words}")
    return _credentials_refused(words, rule, challenges, oauth2=oauth2)


def is_refusal(error: Exception) -> bool:
    """Whether a NO or BAD refuses the command alone: the server does not end the session or ask for a pause by it."""
    text = _server_text(_readable(error))
    rule = judge(text)
    if rule is None or rule.meaning not in {"session_ended", "locked_out", "throttled"}:
        return not _OWN_WORDS.search(_readable(error))
    return rule.meaning == "throttled" and asked_pause(text) is None


def refuses_arguments(error: Exception) -> bool:
    """Whether a NO or BAD is about what was asked, as far as its words tell, and not about the state of the server."""
    rule = judge(_server_text(_readable(error)))
    return (rule is None or rule.meaning == "bug") and is_refusal(error)


def wants_identification(error: Exception) -> bool:
    """Whether a server lets in only who sends ID; Netease says so to SELECT."""
    return "unsafe login" in _readable(error).lower()


def hide_names(message: str, names: Sequence[str]) -> str:
    """Return a message without these names and secrets in what it quotes of a server."""
    parts = {part for name in names for part in (name, name.partition("@")[0])}
    hidden = sorted((part for part in parts if len(part) >= SHORTEST_NAME), key=len)
    if not hidden or SERVER_SAYS not in message:
        return message
    pattern = re.compile(rf"(?<![^\W_])(?:{'|'.join(map(re.escape, reversed(hidden)))})(?![^\W_])", re.IGNORECASE)
    before, says, rest = message.partition(SERVER_SAYS)
    words, end, after = rest.partition('"')
    return before + says + pattern.sub("<user>", words) + end + after


def _by_meaning(rule: AnswerRule, words: str, text: str) -> EmailIngestionError | None:
    """Return our error for a meaning that does not depend on the command; None for a trouble that may pass."""
    says = f"{rule.says}: {words}"
    match rule.meaning:
        case "session_ended":
            return SessionExpired(says)
        case "locked_out" | "throttled":
            return _limited(text)
        case "browser":
            return _with_remedy(WebLoginRequired(f"{rule.says}: do so, then wait; {words}"), rule)
        case "operator" | "bug":
            return _with_remedy(IMAPCommandRefused(says), rule)
        case "gone":
            return MailboxGone(says)
        case _:
            return None


def _credentials_refused(
    words: str, rule: AnswerRule | None, challenges: list[bytes], *, oauth2: bool
) -> AuthenticationFailed:
    if not oauth2:
        return _with_remedy(AuthenticationFailed(f"the mail server refuses IMAP_USER and IMAP_PASSWORD: {words}"), rule)
    if _status(challenges) == "invalid_request" or "Lookup failed" in words:
        return LookupFailed(
            "Gmail refuses the token's scope or user: check IMAP_USER, then run `python producer.py --auth-setup`; "
            + words
        )
    return TokenRejected(
        "the mail server refuses the access token: run `python producer.py --auth-setup` if it lasts; " + words
    )


def _limited(text: str) -> IMAPThrottledError | None:
    rule = judge(_server_text(text))
    if rule is None or rule.meaning not in {"locked_out", "throttled"}:
        return None
    says, pause = f"{rule.says}: {quote_server(_server_text(text))}", asked_pause(_server_text(text))
    if rule.meaning == "locked_out":
        return _with_remedy(IMAPLockedOut(says, pause or OVERQUOTA_SECONDS), rule)
    return _with_remedy(IMAPThrottledError(says, pause or CROWDED_SECONDS, asked=pause is not None), rule)


def _with_remedy(error: Refusal, rule: AnswerRule | None) -> Refusal:
    error.remedy = rule.remedy if rule else ""
    return error


def _status(challenges: list[bytes]) -> str | None:
    """Return the status in the error challenge; it is a string, and the other keys vary."""
    try:
        return str(json.loads(challenges[-1]).get("status")) if challenges else None
    except (ValueError, AttributeError):
        return None


def _readable(error: Exception) -> str:
    """Return the text of an error, in which imaplib and imapclient leave reprs of bytes and lists of them."""
    text = str(error)[:READ_REPR]
    return " ".join(re.sub(r"\[?b(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")\]?", _decoded, text).split())


def _decoded(found: re.Match[str]) -> str:
    try:
        value = ast.literal_eval(found[0].strip("[]"))
    except (ValueError, SyntaxError):
        return found[0]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else found[0]


def _server_text(text: str) -> str:
    """Return what the server said, without the words that our libraries put around it."""
    found = _AROUND.fullmatch(text)
    return _BYE.sub("", found["text"] if found else text)
