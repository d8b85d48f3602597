"""One account's watcher: connect, sync, wait for more, and come back from whatever goes wrong.

    connect ─▶ sync ─▶ wait (IDLE, poll as safety net) ─▶ sync ─▶ …
       ▲         ▲  ├─▶ a portion of older mail, while there is ┐ │
       │         │  ├─▶ labels that changed, now and then ───────┤ │
       │         │  └─▶ a step of the audit, while one is due ──┤ │
       │         └──────────────────────────────────────────────┘ │
       └── back-off ◀── failure          session over: at once ◀──┘

What a failure means is decided in `reaction`. Authorization that a person must renew is looked at again when the token
file changes. Older mail, labels and the audit (`reconcile`) go on in small steps between syncs, so that new mail never
waits for them.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial

from email_ingestion.breaker import Breaker
from email_ingestion.errors import (
    AuthenticationFailed,
    CircuitBreakerError,
    ConfigurationError,
    EmailIngestionError,
    IMAPConnectionError,
    IMAPLockedOut,
    LeaseLost,
    RedisConnectionError,
    SessionExpired,
    SinkUnavailable,
    StaleCursor,
    TokenRefreshError,
    TransientError,
)
from email_ingestion.events import (
    ConnectionFailed,
    LockedOut,
    LoopFailed,
    LoopTick,
    NeedsOperator,
    Observe,
    Probed,
    RedisFailed,
    SessionEnded,
    Slowed,
    Watching,
)
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.mailbox.imap_errors import MailboxGone
from email_ingestion.mailbox.imap_mailbox import SelectedMailbox
from email_ingestion.producer.audits import Audits
from email_ingestion.producer.budget import Budget
from email_ingestion.producer.connect import Connector
from email_ingestion.producer.reaction import Patience, Reaction
from email_ingestion.producer.room import Room
from email_ingestion.producer.work import Pace, Work
from email_ingestion.settings import Account
from email_ingestion.stream import Lockout

REDIS_SECONDS = 1.0  # Redis is near and cheap to ask, and its breaker spares it
TRIAL_SECONDS = 0.2  # while somebody else tries whether it is back
# An IDLE ends this soon even when nothing comes: with the time its end may take, a dead peer is found within a minute.
SILENCE_SECONDS = 45.0
SESSION_SPREAD = 0.1  # of a session's length, so that the accounts of a process do not reconnect together


class Watcher:
    """Runs in a thread of its own; `once` makes a single pass and raises what went wrong."""

    def __init__(
        self,
        account: Account,
        pace: Pace,
        *,
        connector: Connector,
        imap_breaker: Breaker,
        work: Work,
        budget: Budget,
        lockout: Lockout,
        patience: Patience,
        give_up: Callable[[EmailIngestionError], None],
        observe: Observe,
    ) -> None:
        self._account = account
        self._pace = pace
        self._connector = connector
        self._imap = imap_breaker
        self._work = work
        self._lockout = lockout
        self._patience = patience
        self._give_up = give_up
        self._observe = observe
        self._stop = threading.Event()
        self._room = Room(account.name, work, budget, stopped=self._stop, turned=self._turned, observe=observe)
        self._audits = Audits(work, pace.audit, imap_breaker)
        self._connection: ImapMailbox | None = None
        self._locked = False
        self._activity = 0
        self._slowed = 0.0
        self._progress = time.monotonic()

    def stop(self) -> None:
        """End soon, whatever it is waiting for; from any thread."""
        self._stop.set()
        connection = self._connection
        if connection:
            connection.interrupt()

    def run(self) -> None:
        """Watch until `stop`, or until another process reads the account."""
        while not self._stop.is_set():
            self._turned()
            try:
                if not self._shut_out():
                    self._session()
            except LeaseLost as error:
                self._observe(SessionEnded(self._account.name, str(error)))
                break
            except EmailIngestionError as error:
                if not self._stop.is_set():
                    self._come_back(error)
            except Exception as error:  # noqa: BLE001 - the watcher must not die silently, whatever it met
                self._observe(LoopFailed(self._loop, error))
                self._pause(self._patience.delay())
        self._watching("stopped")

    def once(self) -> bool:
        """One pass over the mailbox; False when it was stopped before its end. Raises what went wrong."""
        while True:
            try:
                with closing(self._connect()) as connection:
                    try:
                        return self._pass(connection, self._open(connection))
                    finally:
                        self._room.settle(connection, last=True)
            except (SessionExpired, StaleCursor) as error:  # a long pass outlives its session
                self._observe(SessionEnded(self._account.name, str(error)))
                self._pause(self._patience.react(error).seconds)

    def _pass(self, connection: ImapMailbox, opened: SelectedMailbox) -> bool:
        """Everything that is there, new mail first; the stream may fill up, for perhaps no worker runs."""
        rest = partial(self._room.rest, connection)
        if not self._imap.run(self._work.sync(connection, opened, self._room.at_once, rest).run):
            return False
        history = self._work.history(connection, opened, self._room.at_once).steps()
        while not self._stop.is_set():
            pause = self._imap.run(lambda: next(history))
            if pause == math.inf:
                return True
            self._room.settle(connection)
            if pause:
                rest(pause)
        return False

    def idle_for(self) -> float:
        """Seconds in which nothing was achieved, though nothing was deliberately waited for; from any thread."""
        connection = self._connection
        if connection and connection.activity != self._activity:
            self._activity = connection.activity
            self._turned()
        return time.monotonic() - self._progress

    def abandon(self) -> None:
        """Stop, and cut the connection under whatever it is stuck in; from any thread."""
        self.stop()
        connection = self._connection
        if connection:
            connection.abort()

    def _shut_out(self) -> bool:
        """Wait until the mail server lets the account in again; False when it does now."""
        seconds = self._lockout.remaining()
        if seconds:
            until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))
            self._locked = True
            self._room.hold(f"the mail server has shut the account out until {until}")
            self._watching("locked_out")
            self._pause(min(seconds, self._pace.poll))  # an operator may lift it in Redis
            return True
        if self._locked:
            self._locked = False
            self._room.hold("")
            self._observe(LockedOut(self._account.name, None, 0.0))
        return False

    def _session(self) -> None:
        """One connection, from login to its planned end."""
        self._watching("connecting")
        with closing(self._connect()) as connection:
            try:
                self._stay(connection, self._open(connection))
            finally:
                self._room.settle(connection, last=True)

    def _stay(self, connection: ImapMailbox, opened: SelectedMailbox) -> None:
        """Sync, listen and sync again until the session is to end."""
        sync = self._work.sync(connection, opened, self._room.at_once, partial(self._room.rest, connection))
        beside = self._beside(connection, opened)
        self._audits.drop()
        again = self._work.again(connection, opened)
        life = self._connector.life(self._pace.session) * (1 - SESSION_SPREAD * self._patience.rng.random())
        while not self._stop.is_set():
            self._watching("syncing")
            started = time.monotonic()
            try:
                if not self._imap.run(sync.run):
                    return
                self._succeeded(started, connection)
                self._room.settle(connection)
                self._imap.run(again.run)
                pause = self._imap.run(lambda: next(beside))  # noqa: B023 - it is run at once
                auditing = bool(pause) and self._audits.step(connection, opened, partial(self._room.wait, connection))
            except (RedisConnectionError, CircuitBreakerError, SinkUnavailable) as error:
                self._audits.drop()
                beside = self._beside(connection, opened)
                self._sit_out(error, connection)
                continue
            if connection.age > life:
                self._observe(SessionEnded(self._account.name, "planned renewal"))
                return
            if pause and not auditing:
                self._listen(connection, min(pause, life - connection.age))

    def _beside(self, connection: ImapMailbox, opened: SelectedMailbox) -> Iterator[float]:
        """What goes on beside new mail; each step says for how many seconds nothing of it is to be done."""
        history = self._work.history(connection, opened, self._room.for_history).steps()
        labels = self._work.labels(connection, opened, self._room.for_labels).steps()
        while True:
            yield min(next(history), next(labels))

    def _listen(self, connection: ImapMailbox, longest: float) -> None:
        self._watching("idle")
        soon = min(self._audits.wait, longest)
        connection.wait(max(0.0, min(self._pace.poll, self._pace.idle, SILENCE_SECONDS, soon)))

    def _succeeded(self, started: float, connection: ImapMailbox) -> None:
        self._patience.succeeded()
        self._observe(Probed("imap", ok=True, seconds=time.monotonic() - started, error=None))
        if connection.throttle_delay != self._slowed:
            self._slowed = connection.throttle_delay
            self._observe(Slowed(self._account.name, self._slowed))
        self._turned()

    def _connect(self) -> ImapMailbox:
        self._connection = self._connector.connect()
        return self._connection

    def _open(self, connection: ImapMailbox) -> SelectedMailbox:
        def find_and_open() -> SelectedMailbox:
            return connection.examine(connection.find_mailbox(self._account.imap_mailbox))

        try:
            return self._imap.run(find_and_open)
        except MailboxGone:  # renamed between the list and the opening, when the owner changed the language
            return self._imap.run(find_and_open)

    def _sit_out(self, error: TransientError, connection: ImapMailbox) -> None:
        """Redis or the ledger is away: the mail can wait on the server, and the connection need not be made again."""
        self._away(error)
        self._room.keep_alive(connection)

    def _away(self, error: TransientError) -> None:
        delay = min(self._patience.delay(), REDIS_SECONDS)
        if isinstance(error, CircuitBreakerError):  # no later than its next trial, which costs nothing to wait for
            delay = min(REDIS_SECONDS, max(error.retry_after, TRIAL_SECONDS))
        ledger = isinstance(error, SinkUnavailable)
        self._observe(LoopFailed(self._loop, error) if ledger else RedisFailed(error, delay))
        self._watching("waiting")
        self._pause(delay)

    def _come_back(self, error: EmailIngestionError) -> None:
        """Announce what ended a session, and stay away as long as it asks for."""
        if isinstance(error, (RedisConnectionError, SinkUnavailable)):
            self._away(error)
            return
        if isinstance(error, StaleCursor):
            self._audits.at_once()
        reaction = self._patience.react(error)
        if isinstance(error, IMAPLockedOut):
            reaction = Reaction(reaction.kind, self._lock_out(error))
        self._announce(error, reaction)
        if reaction.kind == "normal" and not reaction.seconds:
            return
        self._watching("needs_operator" if reaction.kind == "operator" else "waiting")
        if reaction.kind != "locked_out":  # its end is written down, and waited for there
            self._pause(reaction.seconds, renewable=reaction.kind == "operator")

    def _lock_out(self, error: IMAPLockedOut) -> float:
        """Note it where a restart finds it; returns the seconds it lasts."""
        try:
            seconds = self._lockout.start(error.retry_after)
        except TransientError as away:
            self._away(away)
            seconds = error.retry_after
            self._pause(seconds)
        self._observe(LockedOut(self._account.name, error, time.time() + seconds))
        return seconds

    def _announce(self, error: EmailIngestionError, reaction: Reaction) -> None:
        account = self._account.name
        if isinstance(error, (SessionExpired, StaleCursor)):
            self._observe(SessionEnded(account, str(error)))
            return
        if isinstance(error, (AuthenticationFailed, IMAPConnectionError)):
            self._observe(ConnectionFailed(account, error, reaction.seconds))
        if isinstance(error, IMAPConnectionError):
            self._observe(Probed("imap", ok=False, seconds=0.0, error=error))
        if reaction.kind == "operator":
            if isinstance(error, ConfigurationError) and not self._patience.ever:
                self._give_up(error)
            self._observe(NeedsOperator(account, error))
        elif not isinstance(error, (AuthenticationFailed, IMAPConnectionError, CircuitBreakerError, TokenRefreshError)):
            self._observe(LoopFailed(self._loop, error))

    def _pause(self, seconds: float, *, renewable: bool = False) -> None:
        """Wait, turning: a long pause is not a stalled loop. A new consent ends a `renewable` one."""
        end = time.monotonic() + seconds
        known = self._work.renewed() if renewable else None
        while not self._stop.wait(min(1.0, max(0.0, end - time.monotonic()))) and time.monotonic() < end:
            self._turned()
            if renewable and self._work.renewed() != known:
                return

    @property
    def _loop(self) -> str:
        return f"watch:{self._account.name}"

    def _turned(self) -> None:
        self._progress = time.monotonic()
        self._observe(LoopTick(self._loop))

    def _watching(self, state: str) -> None:
        self._observe(Watching(self._account.name, state))
