"""Every error of ours, by what is to be done about it.

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
│   │   └── IMAPCommandRefused           it does not understand a command: our fault, repeating it is pointless
│   ├── SessionExpired               the IMAP session's hour is over: normal, reconnect at once
│   ├── TokenRefreshError            the token endpoint did not answer properly
│   ├── ParserDied                   a message ended the parser process: poison, if it does so again and again
│   ├── SinkUnavailable              a sink cannot take anything now
│   ├── SinkFailed                   a sink failed over a message, and either may be to blame
│   ├── SinkThrottled                a sink asks for a pause
│   ├── Retry                        what a sink of yours raises: this message, once more, later
│   └── CircuitBreakerError          not tried: the breaker is open
├── PermanentError               this message will never go through: dead letter now
│   └── Reject                       what a sink of yours raises: never this message
├── LeaseLost                    another process reads the account now: stand by
└── StaleCursor                  the mailbox or the stream is not where the producer believed: read it again
"""

from __future__ import annotations

import hashlib
import re


class EmailIngestionError(Exception):
    """The root; its text is one sentence an operator can act on."""


class ConfigurationError(EmailIngestionError):
    """A setting is wrong or missing."""


class OperationFailed(EmailIngestionError):
    """A command cannot do what it was asked to do."""


class AuthenticationFailed(EmailIngestionError):
    """A server refuses the credentials; waiting does not help, an operator does."""


class OAuth2AuthenticationError(AuthenticationFailed):
    """OAuth2 authorization is gone or insufficient: `python producer.py --auth-setup` renews it."""


class TransientError(EmailIngestionError):
    """It may well work later."""


class RedisConnectionError(TransientError):
    """Redis cannot be reached, is loading, or refuses writes."""


class IMAPConnectionError(TransientError):
    """The IMAP server cannot be reached or broke off the conversation."""


class IMAPThrottledError(IMAPConnectionError):
    """The IMAP server limits the account; `retry_after` is the least time to stay away, in seconds."""

    def __init__(self, message: str, retry_after: float = 60.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class IMAPLockedOut(IMAPThrottledError):
    """The account exceeded its daily limits; coming back early makes it last longer."""


class IMAPCommandRefused(IMAPConnectionError):
    """The IMAP server answers BAD: report it as a fault of email-ingestion, with the log of the last minutes."""


class SessionExpired(TransientError):
    """The server ended the session because its access token's hour is over: no failure, reconnect at once."""


class TokenRefreshError(TransientError):
    """The token endpoint failed in a way that may pass."""


class ParserDied(TransientError):
    """A message crashed the parser process, or outlasted WORKER_HANDLE_TIMEOUT_SECONDS."""


class SinkUnavailable(TransientError):
    """A sink cannot take anything at present: no message is to blame."""


class SinkFailed(TransientError):
    """A sink failed over a message; which of the two is to blame shows when others get through."""


class SinkThrottled(TransientError):
    """A sink asks not to be given anything for `retry_after` seconds: neither it nor a message is to blame."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Retry(TransientError):
    """Raised by a sink that may take this message later, in `after` seconds; without it the usual back-off holds."""

    def __init__(self, message: str = "asked for another attempt", after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class CircuitBreakerError(TransientError):
    """The call was not made because the breaker of its dependency is open."""

    def __init__(self, name: str, retry_after: float) -> None:
        super().__init__(f"circuit breaker {name} is open, next attempt in {retry_after:.0f} s")
        self.name = name
        self.retry_after = retry_after


class PermanentError(EmailIngestionError):
    """This message can never be delivered as it is."""


class Reject(PermanentError):
    """Raised by a sink that will never take this message: it becomes a dead letter at once."""


class LeaseLost(EmailIngestionError):
    """The account's lease is not this process's any more; what it was about to write was refused."""


class StaleCursor(EmailIngestionError):
    """The cursor in Redis is not the one the producer started from; it must read it again."""


def fingerprint_of(event: str, kind: str, said: str) -> str:
    """The same for failures alike: at the same event, of the same class, saying the same but for numbers and quotes."""
    words = re.sub(r"0x[0-9a-f]+|\d+|'[^']*'|\"[^\"]*\"", "#", said, flags=re.IGNORECASE)
    return hashlib.sha256(f"{event}|{kind}|{words}".encode()).hexdigest()[:12]
