"""One account's watcher: connect, sync, wait for more, and come back from whatever goes wrong.

    connect ─▶ sync ─▶ wait (IDLE, poll as safety net) ─▶ sync ─▶ …
       ▲         ▲  └─▶ a step of the audit, while one is due ─┐ │
       │         └─────────────────────────────────────────────┘ │
       └── back-off ◀── failure         session over: at once ◀──┘

The back-off is reset by a successful sync only, never by a login. Authorization that a person must renew is looked
at again now and then, so that a new consent needs no restart. An audit (`reconcile`) goes on in small steps between
syncs, so that new mail does not wait for it.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from email_ingestion.breaker import Breaker
from email_ingestion.errors import (
    AuthenticationFailed,
    CircuitBreakerError,
    ConfigurationError,
    EmailIngestionError,
    IMAPConnectionError,
    IMAPThrottledError,
    RedisConnectionError,
    SessionExpired,
    SinkUnavailable,
    StaleCursor,
    TokenRefreshError,
    TransientError,
)
from email_ingestion.events import (
    Connected,
    ConnectionFailed,
    Held,
    LoopFailed,
    NeedsOperator,
    Observe,
    Probed,
    RedisFailed,
    SessionEnded,
    Turned,
    Watching,
)
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.mailbox.imap import Opened
from email_ingestion.mailbox.replies import TokenRejected
from email_ingestion.producer.sync import Sync
from email_ingestion.producer.tokens import Tokens
from email_ingestion.retry import backoff, jittered
from email_ingestion.settings import Account

OPERATOR_SECONDS = 15.0  # how often an account that waits for a person is looked at again
ROOM_SECONDS = 0.5
REDIS_SECONDS = 2.0  # Redis is near and cheap to ask, and its breaker spares it
KEEPALIVE_SECONDS = 60.0
CAP_SECONDS = 300.0
END = object()
AUDIT_AGAIN_SECONDS = 60.0  # an audit that failed is begun again after this long, or at its usual time if sooner


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things last, in seconds."""

    poll: float
    idle: float
    timeout: float
    session: float
    audit: float  # infinite: never


class Audit(Protocol):
    """A comparison of the mailbox with what became of its mail."""

    def steps(self) -> Iterator[None]:
        """Compare, pausing often."""


class Watcher:
    """Runs in a thread of its own; `once` makes a single pass and raises what went wrong."""

    def __init__(
        self,
        account: Account,
        pace: Pace,
        *,
        tokens: Tokens | None,
        imap_breaker: Breaker,
        full: Callable[[], str | None],
        make_sync: Callable[[ImapMailbox, Opened, Callable[[], bool]], Sync],
        make_audit: Callable[[ImapMailbox, Opened, Callable[[], bool]], Audit],
        give_up: Callable[[EmailIngestionError], None],
        observe: Observe,
        rng: random.Random,
    ) -> None:
        self._account = account
        self._pace = pace
        self._tokens = tokens
        self._imap = imap_breaker
        self._full = full
        self._make_sync = make_sync
        self._make_audit = make_audit
        self._give_up = give_up
        self._observe = observe
        self._rng = rng
        self._stop = threading.Event()
        self._connection: ImapMailbox | None = None
        self._failures = 0
        self._held = ""
        self._synced = False
        self._spoke = time.monotonic()
        self._audit_due = self._audit_soonest = time.monotonic() if pace.audit < math.inf else math.inf

    def stop(self) -> None:
        """End soon, whatever it is waiting for; from any thread."""
        self._stop.set()
        connection = self._connection
        if connection:
            connection.interrupt()

    def run(self) -> None:
        """Watch until `stop`."""
        while not self._stop.is_set():
            self._turned()
            try:
                self._session()
            except (SessionExpired, StaleCursor) as error:
                if isinstance(error, StaleCursor):
                    self._audit_due = self._audit_soonest
                self._observe(SessionEnded(self._account.name, str(error)))
            except EmailIngestionError as error:
                self._pause(self._failed(error))
            except Exception as error:  # noqa: BLE001 - the watcher must not die silently, whatever it met
                self._observe(LoopFailed(self._loop, error))
                self._pause(self._delay())
        self._watching("stopped")

    def once(self) -> bool:
        """One pass over the mailbox; False when it was stopped before its end. Raises what went wrong."""
        connection = self._connect()
        try:
            opened = self._open(connection)
            return self._imap.run(self._make_sync(connection, opened, lambda: self._wait_for_room(connection)).run)
        finally:
            self._leave(connection)

    def _session(self) -> None:
        """One connection, from login to its planned end."""
        self._watching("connecting")
        connection = self._connect()
        try:
            opened = self._open(connection)
            sync = self._make_sync(connection, opened, lambda: self._wait_for_room(connection))
            audit: Iterator[None] | None = None
            while not self._stop.is_set():
                self._watching("syncing")
                started = time.monotonic()
                try:
                    if not self._imap.run(sync.run):
                        return
                    self._succeeded(started)
                    audit = self._audit(audit, connection, opened)
                except (RedisConnectionError, CircuitBreakerError, SinkUnavailable) as error:
                    audit = None
                    self._sit_out(error, connection)
                    continue
                if connection.age > self._pace.session:
                    self._observe(SessionEnded(self._account.name, "planned renewal"))
                    return
                if audit:
                    continue
                self._watching("idle")
                connection.wait(min(self._pace.poll, self._pace.idle, max(0.0, self._audit_due - time.monotonic())))
        finally:
            self._leave(connection)

    def _audit(self, audit: Iterator[None] | None, connection: ImapMailbox, opened: Opened) -> Iterator[None] | None:
        """Take the next step of an audit that runs or is due; returns the audit while there is more of it to do."""
        if not audit:
            if time.monotonic() < self._audit_due:
                return None
            audit = self._make_audit(connection, opened, lambda: self._wait_for_room(connection)).steps()
        # Whatever goes wrong in the step, the audit is not begun again at once: it must not hold up the mail.
        self._audit_due = time.monotonic() + min(AUDIT_AGAIN_SECONDS, self._pace.audit)
        if self._imap.run(lambda: next(audit, END)) is not END:
            return audit
        self._audit_due = time.monotonic() + self._pace.audit
        return None

    def _succeeded(self, started: float) -> None:
        self._failures = 0
        self._synced = True
        self._observe(Probed("imap", ok=True, seconds=time.monotonic() - started, error=None))
        self._turned()

    def _connect(self) -> ImapMailbox:
        token = self._tokens.get() if self._tokens else None
        try:
            return self._imap.run(lambda: self._login(token))
        except TokenRejected:
            if not self._tokens:
                raise
            # Expired early or revoked: one forced refresh tells which.
            fresh = self._tokens.get(rejected=token)
            return self._imap.run(lambda: self._login(fresh))

    def _login(self, token: str | None) -> ImapMailbox:
        connection = ImapMailbox(self._account, self._pace.timeout)
        try:
            connection.login(token)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._observe(Connected(self._account.name))
        return connection

    def _open(self, connection: ImapMailbox) -> Opened:
        return self._imap.run(lambda: connection.open(connection.find(self._account.imap_mailbox)))

    def _wait_for_room(self, connection: ImapMailbox) -> bool:
        """Hold until the stream has room; the connection is kept alive meanwhile. False when told to stop."""
        while not self._stop.is_set():
            self._turned()
            reason = self._full() or ""
            if reason != self._held:
                self._held = reason
                self._observe(Held(self._account.name, reason))
            if not reason:
                return True
            self._keep_alive(connection)
            self._stop.wait(ROOM_SECONDS)
        return False

    def _keep_alive(self, connection: ImapMailbox) -> None:
        if time.monotonic() - self._spoke > KEEPALIVE_SECONDS:
            connection.noop()
            self._spoke = time.monotonic()

    def _sit_out(self, error: TransientError, connection: ImapMailbox) -> None:
        """Redis or the ledger is away: the mail can wait on the server, and the connection need not be made again."""
        self._failures += 1
        delay = min(backoff(self._failures), REDIS_SECONDS)
        ledger = isinstance(error, SinkUnavailable)
        self._observe(LoopFailed(self._loop, error) if ledger else RedisFailed(error, delay))
        self._watching("waiting")
        self._pause(delay)
        self._keep_alive(connection)

    def _leave(self, connection: ImapMailbox) -> None:
        self._connection = None
        connection.close()

    def _failed(self, error: EmailIngestionError) -> float:
        """Announce a failure; returns the seconds to stay away."""
        if isinstance(error, ConfigurationError) and not self._synced:
            self._give_up(error)
        if isinstance(error, (AuthenticationFailed, ConfigurationError)):
            if isinstance(error, AuthenticationFailed):
                self._observe(ConnectionFailed(self._account.name, error, OPERATOR_SECONDS))
            self._observe(NeedsOperator(self._account.name, error))
            self._watching("needs_operator")
            return OPERATOR_SECONDS
        delay = error.retry_after if isinstance(error, (CircuitBreakerError, IMAPThrottledError)) else self._delay()
        if isinstance(error, IMAPConnectionError):
            self._observe(ConnectionFailed(self._account.name, error, delay))
            self._observe(Probed("imap", ok=False, seconds=0.0, error=error))
        elif not isinstance(error, (CircuitBreakerError, TokenRefreshError)):
            self._observe(LoopFailed(self._loop, error))
        self._watching("waiting")
        return delay

    def _delay(self) -> float:
        self._failures += 1
        return jittered(backoff(self._failures, cap=CAP_SECONDS), self._rng)

    def _pause(self, seconds: float) -> None:
        """Wait, turning: a long pause is not a stalled loop."""
        end = time.monotonic() + seconds
        while not self._stop.wait(min(5.0, max(0.0, end - time.monotonic()))) and time.monotonic() < end:
            self._turned()

    @property
    def _loop(self) -> str:
        return f"watch:{self._account.name}"

    def _turned(self) -> None:
        self._observe(Turned(self._loop))

    def _watching(self, state: str) -> None:
        self._observe(Watching(self._account.name, state))
