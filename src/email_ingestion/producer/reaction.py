"""What a watcher does about an error: how grave it is, and how long it stays away. Decisions only."""

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

Kind = Literal["normal", "transient", "throttled", "locked_out", "operator"]

CAP_SECONDS = 300.0
CROWDED_CAP_SECONDS = 900.0
OPERATOR_SECONDS = 15.0  # how soon an account that waits for a person is looked at again; doubling to
BREAKER_SECONDS = 5.0  # an operator may let an open breaker go long before its time
OPERATOR_CAP_SECONDS = 3600.0
LOOKUPS = 3  # Gmail at times fails to look a good token up


@dataclass(frozen=True, slots=True)
class Reaction:
    """How grave an error is, and the seconds to stay away."""

    kind: Kind
    seconds: float


class Patience:
    """Counts what went wrong since the last successful sync. Outlives the watcher it serves."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.ever = False  # a sync succeeded at least once
        self._fruitful = True  # and one since the last session ended
        self._failures = 0
        self._waits = 0
        self._refusals = 0

    def succeeded(self) -> None:
        """A sync succeeded: nothing else ends a back-off, a login least of all."""
        self.ever = self._fruitful = True
        self._failures = self._waits = self._refusals = 0

    def react(self, error: EmailIngestionError) -> Reaction:
        """What to do about `error`; counts it."""
        match error:
            case SessionExpired() | StaleCursor():
                return self._ended()
            case IMAPLockedOut():
                return Reaction("locked_out", error.retry_after)
            case IMAPThrottledError():
                return Reaction("throttled", self._wait(error.retry_after))
            case CircuitBreakerError():
                return Reaction("transient", min(error.retry_after, BREAKER_SECONDS))
            case AuthenticationFailed() | ConfigurationError() | IMAPCommandRefused():
                return self._operator(error)
            case _:
                return Reaction("transient", self.delay())

    def delay(self) -> float:
        """Seconds to stay away after one more failure."""
        self._failures += 1
        return jittered(backoff(self._failures, cap=CAP_SECONDS), self.rng)

    def _ended(self) -> Reaction:
        """No penalty, unless session after session ends before it was of any use."""
        if self._fruitful:
            self._fruitful = False
            return Reaction("normal", 0.0)
        return Reaction("normal", self.delay())

    def _wait(self, least: float) -> float:
        self._waits += 1
        return backoff(self._waits, base=least, cap=max(least, CROWDED_CAP_SECONDS)) * (1 + self.rng.random() / 4)

    def _operator(self, error: EmailIngestionError) -> Reaction:
        self._refusals += 1
        if isinstance(error, LookupFailed) and self._refusals < LOOKUPS:
            return Reaction("transient", self.delay())
        if isinstance(error, WebLoginRequired):
            return Reaction("operator", OPERATOR_CAP_SECONDS)
        return Reaction("operator", backoff(self._refusals, base=OPERATOR_SECONDS, cap=OPERATOR_CAP_SECONDS))
