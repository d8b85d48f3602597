"""How long a watcher stays away from one account after an error, and how serious the error is. Decisions only."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from email_ingestion.backoff import backoff, jittered
from email_ingestion.errors import (
    AuthenticationFailed,
    CircuitBreakerError,
    ConfigurationError,
    EmailIngestionError,
    IMAPCommandRefused,
    IMAPLockedOut,
    IMAPThrottledError,
    SessionExpired,
    StaleCursor,
)
from email_ingestion.mailbox.imap_errors import LookupFailed, WebLoginRequired
from email_ingestion.producer.suspicion import MessageQuarantined

Kind = Literal["normal", "transient", "throttled", "locked_out", "operator"]

CAP_SECONDS = 300.0
THROTTLED_CAP_SECONDS = 900.0
ASKED_SPREAD_SECONDS = 10.0  # added to the time that a server asks for, so that accounts do not come back together
OPERATOR_SECONDS = 15.0  # the first delay of an account that waits for a person; it doubles up to the next constant
OPERATOR_CAP_SECONDS = 3600.0
BREAKER_SECONDS = 5.0  # an operator may close an open breaker long before its time
FREE_QUARANTINES = 3  # messages that may end a conversation in a row, none of others between, before it is backed off
LOOKUP_TRIES = 3  # Gmail at times fails to look up a token that is valid


@dataclass(frozen=True, slots=True)
class Delay:
    """The seconds to stay away, and the kind of error that asks for them."""

    kind: Kind
    seconds: float


class AccountBackoff:
    """Counts the failures of one account since its last successful sync. It outlives the watchers of the account."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.ever_succeeded = False
        self._session_was_useful = True  # a sync succeeded since the last session ended
        self._failures = 0
        self._throttles = 0
        self._refusals = 0
        self._quarantines = 0  # in a row, without another message between

    def reset(self) -> None:
        """Forget all failures, because a sync succeeded. Nothing else ends a back-off, least of all a login."""
        self.ever_succeeded = self._session_was_useful = True
        self._failures = self._throttles = self._refusals = self._quarantines = 0

    def after(self, error: EmailIngestionError) -> Delay:
        """Count `error` and return the delay that follows it."""
        match error:
            case SessionExpired() | StaleCursor():
                return self._session_ended()
            case IMAPLockedOut():
                return Delay("locked_out", error.retry_after)
            case IMAPThrottledError():
                return Delay("throttled", self._throttled(error))
            case CircuitBreakerError():
                return Delay("transient", min(error.retry_after, BREAKER_SECONDS))
            case AuthenticationFailed() | ConfigurationError() | IMAPCommandRefused():
                return self._needs_operator(error)
            case _:
                seconds = self._quarantined(error) if isinstance(error, MessageQuarantined) else self.next_delay()
                return Delay("transient", seconds)

    def next_delay(self) -> float:
        """Count one more failure and return the seconds to stay away."""
        self._failures += 1
        return jittered(backoff(self._failures, cap=CAP_SECONDS), self.rng)

    def _session_ended(self) -> Delay:
        """Reconnect at once, unless session after session ends before a sync succeeded."""
        if self._session_was_useful:
            self._session_was_useful = False
            return Delay("normal", 0.0)
        return Delay("normal", self.next_delay())

    def _quarantined(self, error: MessageQuarantined) -> float:
        """Reconnect at once, unless nothing but such messages comes: then it is perhaps the server that is ill."""
        self._quarantines = 0 if error.others_came else self._quarantines + 1
        return 0.0 if self._quarantines <= FREE_QUARANTINES else self.next_delay()

    def _throttled(self, error: IMAPThrottledError) -> float:
        """Return the time that the server asked for and little more, else half a minute and longer each time."""
        if error.asked:
            return error.retry_after + min(ASKED_SPREAD_SECONDS, error.retry_after / 4) * self.rng.random()
        self._throttles += 1
        minimum = error.retry_after
        seconds = backoff(self._throttles, base=minimum, cap=max(minimum, THROTTLED_CAP_SECONDS))
        return seconds * (1 + self.rng.random() / 4)

    def _needs_operator(self, error: EmailIngestionError) -> Delay:
        self._refusals += 1
        if isinstance(error, LookupFailed) and self._refusals < LOOKUP_TRIES:
            return Delay("transient", self.next_delay())
        if isinstance(error, WebLoginRequired):
            return Delay("operator", OPERATOR_CAP_SECONDS)
        return Delay("operator", backoff(self._refusals, base=OPERATOR_SECONDS, cap=OPERATOR_CAP_SECONDS))
