"""How long a watcher stays away from one account after an error, and how serious the error is. Decisions only.

What may pass is tried again often enough that an account is back within CB_RECOVERY_TIMEOUT of the end of an outage,
however long that was. Two things are asked seldom, for providers lock out who asks often: a login with credentials that
were refused, and logins after which nothing is achieved.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
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

RECOVERY_SECONDS = 30.0  # CB_RECOVERY_TIMEOUT as it comes
THROTTLED_CAP_SECONDS = 900.0
ASKED_SPREAD_SECONDS = 10.0  # added to the time that a server asks for, so that accounts do not come back together
REFUSED_SECONDS = 900.0  # between two logins with credentials that were refused
BROWSER_SECONDS = 3600.0  # until it is looked whether the owner has confirmed the login in a browser
OPERATOR_SECONDS = 15.0  # the first delay of a setting or command that a person must mend; it doubles up to the next
OPERATOR_CAP_SECONDS = 900.0
BREAKER_SECONDS = 5.0  # an operator may close an open breaker long before its time
FREE_QUARANTINES = 3  # messages that may end a conversation in a row, none of others between, before it is backed off
PROBED_SECONDS = 1.0  # the least wait for a breaker: another account's probe may be under way
SOON_SECONDS = 1.0  # after a login without progress until the next one, and twice that after the second
LOGIN_SECONDS = 28.0  # after every further one: at most four within a minute
LOGINS = 3  # without progress, that follow each other closely
LOOKUP_TRIES = 3  # Gmail at times fails to look up a token that is valid


@dataclass(frozen=True, slots=True)
class Delay:
    """The seconds to stay away, and the kind of error that asks for them."""

    kind: Kind
    seconds: float


class AccountBackoff:
    """Counts the failures of one account since its last successful sync. It outlives the watchers of the account.

    `recovery` is CB_RECOVERY_TIMEOUT, `clock` gives monotonic seconds.
    """

    def __init__(
        self, rng: random.Random, recovery: float = RECOVERY_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rng = rng
        self._recovery = recovery
        self._clock = clock
        self._logins = 0  # without progress
        self._last_login = 0.0
        self._next_login = 0.0
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

    def count_login(self) -> None:
        """Count a login that is about to be tried."""
        now = self._clock()
        if now - self._last_login > 2 * LOGIN_SECONDS:
            self._logins = 0
        self._logins += 1
        self._last_login = now
        seconds = SOON_SECONDS * self._logins if self._logins < LOGINS else LOGIN_SECONDS
        self._next_login = now + seconds * (1 + self.rng.random() / 16)

    def progressed(self) -> None:
        """Forget the logins, because mail was read since."""
        self._logins, self._next_login = 0, 0.0

    def login_delay(self) -> float:
        """Return the seconds until the next login may be tried."""
        return max(0.0, self._next_login - self._clock())

    def after(self, error: EmailIngestionError, spent: float = 0.0) -> Delay:
        """Count `error` and return the delay that follows it.

        `spent` are the seconds that the attempt took to fail: a server that does not answer had a rest meanwhile.
        """
        match error:
            case SessionExpired() | StaleCursor():
                return self._session_ended()
            case IMAPLockedOut():
                return Delay("locked_out", error.retry_after)
            case IMAPThrottledError():
                return Delay("throttled", self._throttled(error))
            case CircuitBreakerError():
                return Delay("transient", max(min(error.retry_after, BREAKER_SECONDS), self._spread(PROBED_SECONDS)))
            case AuthenticationFailed() | ConfigurationError() | IMAPCommandRefused():
                return self._needs_operator(error)
            case _:
                return Delay("transient", self._may_pass(error, spent))

    def _may_pass(self, error: EmailIngestionError, spent: float) -> float:
        if isinstance(error, MessageQuarantined):
            return self._quarantined(error)
        return max(self._spread(PROBED_SECONDS), self.next_delay() - spent)

    def next_delay(self) -> float:
        """Count one more failure and return the seconds to stay away."""
        self._failures += 1
        return self._spread(backoff(self._failures, cap=self._recovery))

    def _spread(self, seconds: float) -> float:
        return jittered(min(seconds, self._recovery), self.rng)

    def _session_ended(self) -> Delay:
        """Reconnect at once, unless session after session ends before a sync succeeded."""
        if self._session_was_useful:
            self._session_was_useful = False
            return Delay("normal", 0.0)
        return Delay("normal", self.next_delay())

    def _quarantined(self, error: MessageQuarantined) -> float:
        """Reconnect at once, unless nothing but such messages comes: then it is perhaps the server that is ill."""
        self._quarantines = 0 if error.others_came else self._quarantines + 1
        if self._quarantines > FREE_QUARANTINES:
            return self.next_delay()
        self._failures = 0
        self.progressed()
        return 0.0

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
            return Delay("operator", BROWSER_SECONDS)
        if isinstance(error, AuthenticationFailed):
            return Delay("operator", REFUSED_SECONDS)
        return Delay("operator", backoff(self._refusals, base=OPERATOR_SECONDS, cap=OPERATOR_CAP_SECONDS))
