"""All errors of this package, by the action they need.

EmailIngestionError
├── ConfigurationError           the operator mends a setting; exit 78
├── OperationFailed              a command cannot do what it was asked; exit 2
├── AuthenticationFailed         the operator must act; the account waits
│   └── OAuth2AuthenticationError    consent is needed again, or the scope is wrong
├── TransientError               back off and try again
│   ├── RedisConnectionError         Redis is away, busy or refuses writes
│   ├── IMAPConnectionError          the mail server is away or broke off
│   │   ├── IMAPThrottledError           it asks us to come back later
│   │   │   └── IMAPLockedOut                the account's daily limit is used up: hours, over restarts too
│   │   ├── IMAPProtocolViolation        it sends more than was asked for: one account's trouble, whatever it is
│   │   └── IMAPCommandRefused           it refuses a command that cannot be done without: an operator must look
│   ├── SessionExpired               the IMAP session's hour is over: normal, reconnect at once
│   ├── TokenRefreshError            the token endpoint did not answer properly
│   ├── ParserDied                   a message ended the parser process: poison, if it does so repeatedly
│   ├── ContentLost                  stored bytes are missing or damaged
│   ├── ParserUnavailable            the parser process cannot be started, or the system ends it
│   ├── SinkUnavailable              a sink is down
│   ├── SinkFailed                   a sink failed over a message; either may be at fault
│   │   └── SinkTimedOut                 its call took too long and was ended
│   ├── SinkThrottled                a sink asks for a pause
│   ├── Retry                        raised by a sink: try this message again later
│   ├── CircuitBreakerError          not tried: the breaker is open
│   └── ThreadUnavailable            the system lets no thread start: a limit, or no memory
├── PermanentError               this message will never go through: dead letter now
│   └── Reject                       raised by a sink: never try this message again
├── LeaseLost                    another process reads the account now: stand by
└── StaleCursor                  the mailbox or the stream is not where the producer believed: read it again
"""

from __future__ import annotations

import errno
import hashlib
import re
import unicodedata

QUOTED_LENGTH = 200  # characters of a server's words that are shown
READ_LENGTH = 10 * QUOTED_LENGTH  # and are looked at: what hides addresses takes a time that grows with their square
SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC})
SERVER_SAYS = 'the server says "'  # ends at the next quotation mark

_MAIL_ADDRESS = re.compile(r"[^\s<>'`,;:=()\[\]{}|]+@[^\s<>'`,;:=()\[\]{}|]+")
# Base64 as SASL sends it, and tokens: words of their own, long and mixed, or padded.
_PAYLOAD = re.compile(
    r"(?<![^\s'(\[<{])(?:"
    r"(?=\S{0,200}\d)(?=\S{0,200}[A-Z])(?=\S{0,200}[a-z])[A-Za-z0-9+/_.-]{20,}={0,2}|[A-Za-z0-9+/]{6,}={1,2}"
    r")(?![^\s')\]>},;.])"
)


class EmailIngestionError(Exception):
    """The root; its text is one sentence an operator can act on, and `remedy` what to do where that is not in it."""

    remedy: str = ""
    concerns_one_account = False  # whether it says nothing of the dependency that the others use too


class ConfigurationError(EmailIngestionError):
    """A setting is wrong or missing."""


class DiskFull(ConfigurationError):
    """The disk is full or read-only: no setting is wrong, and what is started again later may go on."""


class OperationFailed(EmailIngestionError):
    """A command cannot do what it was asked to do."""


class AuthenticationFailed(EmailIngestionError):
    """A server refuses the credentials; waiting does not help, an operator does."""


class OAuth2AuthenticationError(AuthenticationFailed):
    """OAuth2 authorization is gone or insufficient: `python producer.py --auth-setup` renews it.

    Not so where it `is_of_client`: the provider refuses our OAuth2 client, whose ID or secret is set wrong.
    """

    def __init__(self, message: str, *, is_of_client: bool = False) -> None:
        super().__init__(message)
        self.is_of_client = is_of_client


class TransientError(EmailIngestionError):
    """A failure that may pass; back off and try again."""


class RedisConnectionError(TransientError):
    """Redis cannot be reached, is loading, or refuses writes."""


class IMAPConnectionError(TransientError):
    """The IMAP server cannot be reached or broke off the conversation."""


class IMAPThrottledError(IMAPConnectionError):
    """The IMAP server limits the account; `retry_after` is the minimum pause, in seconds, `asked` if it said so."""

    def __init__(self, message: str, retry_after: float = 60.0, *, asked: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.asked = asked


class IMAPLockedOut(IMAPThrottledError):
    """The account exceeded its daily limits; an early attempt prolongs the lock."""


class IMAPProtocolViolation(IMAPConnectionError):
    """The IMAP server sent more than any answer may have, or what is no IMAP; the connection was ended."""

    concerns_one_account = True


class IMAPCommandRefused(IMAPConnectionError):
    """The IMAP server refuses what cannot be done without; only a person, here or there, changes that."""


class SessionExpired(TransientError):
    """The server ended the session after the access token's hour: not a failure, reconnect at once."""


class TokenRefreshError(TransientError):
    """The token endpoint failed temporarily."""


class ParserDied(TransientError):
    """A message crashed the parser process, or outlasted WORKER_HANDLE_TIMEOUT_SECONDS."""

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # of the process, negative for a signal; None when it took too long


class ParserUnavailable(TransientError):
    """The parser process cannot be started or parses nothing, not even an empty message; no message is at fault."""


class ContentLost(TransientError):
    """The stored bytes of a message are missing or damaged: `email-ingestion blobs verify` fetches them again."""


class SinkUnavailable(TransientError):
    """A sink is down; no message is at fault."""


class SinkFailed(TransientError):
    """A sink failed over a message; it is the message's fault if others get through."""


class SinkTimedOut(SinkFailed):
    """A call of a sink took longer than its time limit and was ended."""


class SinkThrottled(TransientError):
    """A sink asks for a pause of `retry_after` seconds; neither the sink nor a message is at fault."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Retry(TransientError):
    """Raised by a sink: try this message again in `after` seconds, or after the usual back-off."""

    def __init__(self, message: str = "asked for another attempt", after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class CircuitBreakerError(TransientError):
    """The call was not made because the breaker of its dependency is open."""

    def __init__(self, name: str, retry_after: float) -> None:
        super().__init__(f"circuit breaker {name} is open, next attempt in {retry_after:.0f} s")
        self.name = name
        self.retry_after = retry_after


class ThreadUnavailable(TransientError):
    """The system lets no thread start: a limit of processes, or no memory. No message and no setting is at fault."""


class PermanentError(EmailIngestionError):
    """This message can never be delivered."""


class Reject(PermanentError):
    """Raised by a sink: move this message to the dead letters at once."""


class LeaseLost(EmailIngestionError):
    """Another process holds the account's lease now; Redis refused this process's write."""


class StaleCursor(EmailIngestionError):
    """The cursor in Redis changed since the producer read it; read it again."""


def quote_server(text: str) -> str:
    """Return what a server said, as a clause of our message: without addresses, payloads and control characters.

    It is safe to log: `ops.redaction` leaves such a quotation as it is.
    """
    shortened = text[:READ_LENGTH]
    words = "".join(" " if unicodedata.category(letter)[0] in "CZ" else letter for letter in shortened)
    words = words.replace('"', "'")
    words = " ".join(_PAYLOAD.sub("<payload>", _MAIL_ADDRESS.sub("<address>", words)).split())
    shown = words if len(words) <= QUOTED_LENGTH else words[: QUOTED_LENGTH - 1] + "…"
    return f'{SERVER_SAYS}{shown}"' if shown else "the server says nothing more"


def is_unforeseen(error: BaseException) -> bool:
    """Whether nobody foresaw that `error` ends the turn of a loop: those that pass by themselves are foreseen."""
    return not (isinstance(error, TransientError) or is_thread_shortage(error))


def is_shortage(error: BaseException) -> bool:
    """Whether this machine lacks a descriptor, a process, memory or room: no setting is wrong, and it may pass."""
    if isinstance(error, OSError):
        return error.errno in SHORTAGES
    return isinstance(error, (MemoryError, ThreadUnavailable)) or is_thread_shortage(error)


def is_thread_shortage(error: BaseException) -> bool:
    """Whether this is how Python says that the system lets no thread start; it has no class of its own for that."""
    return isinstance(error, RuntimeError) and str(error) == "can't start new thread"


def fingerprint_of(event: str, kind: str, text: str) -> str:
    """Return the same 12 hex digits for failures with the same event, class and text, numbers and quotations aside."""
    words = re.sub(r"0x[0-9a-f]+|\d+|'[^']*'|\"[^\"]*\"", "#", text, flags=re.IGNORECASE)
    return hashlib.sha256(f"{event}|{kind}|{words}".encode()).hexdigest()[:12]
