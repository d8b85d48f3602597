"""One account's watcher: connect, sync, wait for more, and come back from whatever goes wrong.

    connect ─▶ sync ─▶ wait (IDLE, poll as safety net) ─▶ sync ─▶ …
       ▲         ▲  ├─▶ a portion of older mail, while there is ┐ │
       │         │  └─▶ a step of the audit, while one is due ──┤ │
       │         └──────────────────────────────────────────────┘ │
       └── back-off ◀── failure          session over: at once ◀──┘

What a failure means is decided in `reaction`. Authorization that a person must renew is looked at again when the token
file changes. Older mail and the audit (`reconcile`) go on in small steps between syncs, so that new mail never waits
for them.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

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
    Held,
    LockedOut,
    LoopFailed,
    NeedsOperator,
    Observe,
    Probed,
    RedisFailed,
    SessionEnded,
    Slowed,
    Turned,
    Watching,
)
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.mailbox.imap import Opened
from email_ingestion.mailbox.replies import MailboxGone
from email_ingestion.producer.again import Again
from email_ingestion.producer.budget import HISTORY_SHARE, Budget
from email_ingestion.producer.connect import Connector
from email_ingestion.producer.history import History
from email_ingestion.producer.reaction import Patience, Reaction
from email_ingestion.producer.sync import Sync
from email_ingestion.settings import Account
from email_ingestion.stream import Lockout

ROOM_SECONDS = 0.5
HISTORY_DEPTH = 1000  # messages in the stream above which older mail waits: new mail is to wait behind few of it
HISTORY_SECONDS = 0.1  # until it is looked at again
BUDGET_SECONDS = 60.0  # until a budget that is used up is looked at again
REDIS_SECONDS = 2.0  # Redis is near and cheap to ask, and its breaker spares it
TRIAL_SECONDS = 0.2  # while somebody else tries whether it is back
KEEPALIVE_SECONDS = 60.0
AUDIT_AGAIN_SECONDS = 60.0  # an audit that failed is begun again after this long, or at its usual time if sooner
# An IDLE ends this soon even when nothing comes: with the time its end may take, a dead peer is found within a minute.
SILENCE_SECONDS = 45.0
SESSION_SPREAD = 0.1  # of a session's length, so that the accounts of a process do not reconnect together
END = object()


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things last, in seconds."""

    poll: float
    idle: float
    session: float
    audit: float  # infinite: never


class Audit(Protocol):
    """A comparison of the mailbox with what became of its mail."""

    def steps(self) -> Iterator[None]:
        """Compare, pausing often."""


class Work(Protocol):
    """Makes what is done on a connection; `room` waits until the stream has room, False when told to stop."""

    def sync(self, connection: ImapMailbox, opened: Opened, room: Callable[[int], bool]) -> Sync:
        """What brings new mail into the stream."""

    def history(self, connection: ImapMailbox, opened: Opened, room: Callable[[int], float]) -> History:
        """What brings older mail into the stream."""

    def again(self, connection: ImapMailbox, opened: Opened) -> Again:
        """What asks again for messages that were refused."""

    def audit(self, connection: ImapMailbox, opened: Opened, room: Callable[[], bool]) -> Audit:
        """What compares the mailbox with what became of its mail."""

    def full(self) -> str | None:
        """Why nothing more should be fetched now, or None."""

    def depth(self) -> int:
        """How many messages are in the stream."""

    def relieved(self) -> bool:
        """Whether new mail should be fetched and nothing else."""

    def renewed(self) -> object:
        """Changes when a person has renewed the authorization."""


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
        self._budget = budget
        self._lockout = lockout
        self._patience = patience
        self._give_up = give_up
        self._observe = observe
        self._stop = threading.Event()
        self._connection: ImapMailbox | None = None
        self._held = ""
        self._locked = False
        self._activity = 0
        self._slowed = 0.0
        self._spoke = self._progress = time.monotonic()
        self._audit_due = self._audit_soonest = time.monotonic() if pace.audit < math.inf else math.inf

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
                        self._settle(connection, last=True)
            except (SessionExpired, StaleCursor) as error:  # a long pass outlives its session
                self._observe(SessionEnded(self._account.name, str(error)))
                self._pause(self._patience.react(error).seconds)

    def _pass(self, connection: ImapMailbox, opened: Opened) -> bool:
        """Everything that is there, new mail first; the stream may fill up, for perhaps no worker runs."""
        room = partial(self._wait_for_room, connection)
        if not self._imap.run(self._work.sync(connection, opened, room).run):
            return False
        stopped = False

        def wait(size: int) -> float:
            nonlocal stopped
            stopped = not room(size)
            return 1.0 if stopped else 0.0

        history = self._work.history(connection, opened, wait).steps()
        while not stopped and self._imap.run(lambda: next(history)) < math.inf:
            self._settle(connection)
        return not stopped

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
            connection.cut()

    def _shut_out(self) -> bool:
        """Wait until the mail server lets the account in again; False when it does now."""
        seconds = self._lockout.remaining()
        if seconds:
            until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))
            self._locked = True
            self._hold(f"the mail server has shut the account out until {until}")
            self._watching("locked_out")
            self._pause(min(seconds, self._pace.poll))  # an operator may lift it in Redis
            return True
        if self._locked:
            self._locked = False
            self._hold("")
            self._observe(LockedOut(self._account.name, None, 0.0))
        return False

    def _session(self) -> None:
        """One connection, from login to its planned end."""
        self._watching("connecting")
        with closing(self._connect()) as connection:
            try:
                self._stay(connection, self._open(connection))
            finally:
                self._settle(connection, last=True)

    def _stay(self, connection: ImapMailbox, opened: Opened) -> None:
        """Sync, listen and sync again until the session is to end."""
        sync = self._work.sync(connection, opened, partial(self._wait_for_room, connection))
        history = self._work.history(connection, opened, self._history_room).steps()
        again = self._work.again(connection, opened)
        life = self._connector.life(self._pace.session) * (1 - SESSION_SPREAD * self._patience.rng.random())
        audit: Iterator[None] | None = None
        while not self._stop.is_set():
            self._watching("syncing")
            started = time.monotonic()
            try:
                if not self._imap.run(sync.run):
                    return
                self._succeeded(started, connection)
                self._settle(connection)
                self._imap.run(again.run)
                pause = self._imap.run(lambda: next(history))  # noqa: B023 - it is run at once
                if pause:
                    audit = self._audit(audit, connection, opened)
            except (RedisConnectionError, CircuitBreakerError, SinkUnavailable) as error:
                audit = None
                history = self._work.history(connection, opened, self._history_room).steps()
                self._sit_out(error, connection)
                continue
            if connection.age > life:
                self._observe(SessionEnded(self._account.name, "planned renewal"))
                return
            if pause and not audit:
                self._listen(connection, min(pause, life - connection.age))

    def _listen(self, connection: ImapMailbox, longest: float) -> None:
        self._watching("idle")
        soon = min(self._audit_due - time.monotonic(), longest)
        connection.wait(max(0.0, min(self._pace.poll, self._pace.idle, SILENCE_SECONDS, soon)))

    def _audit(self, audit: Iterator[None] | None, connection: ImapMailbox, opened: Opened) -> Iterator[None] | None:
        """Take the next step of an audit that runs or is due; returns the audit while there is more of it to do."""
        if not audit:
            if time.monotonic() < self._audit_due:
                return None
            if self._work.relieved():
                self._audit_due = time.monotonic() + min(AUDIT_AGAIN_SECONDS, self._pace.audit)
                return None
            audit = self._work.audit(connection, opened, partial(self._wait_for_room, connection, 0)).steps()
        # Whatever goes wrong in the step, the audit is not begun again at once: it must not hold up the mail.
        self._audit_due = time.monotonic() + min(AUDIT_AGAIN_SECONDS, self._pace.audit)
        if self._imap.run(lambda: next(audit, END)) is not END:
            return audit
        self._audit_due = time.monotonic() + self._pace.audit
        return None

    def _succeeded(self, started: float, connection: ImapMailbox) -> None:
        self._patience.succeeded()
        self._observe(Probed("imap", ok=True, seconds=time.monotonic() - started, error=None))
        if connection.slowed != self._slowed:
            self._slowed = connection.slowed
            self._observe(Slowed(self._account.name, self._slowed))
        self._turned()

    def _connect(self) -> ImapMailbox:
        self._connection = self._connector.connect()
        return self._connection

    def _open(self, connection: ImapMailbox) -> Opened:
        def find_and_open() -> Opened:
            return connection.open(connection.find(self._account.imap_mailbox))

        try:
            return self._imap.run(find_and_open)
        except MailboxGone:  # renamed between the list and the opening, when the owner changed the language
            return self._imap.run(find_and_open)

    def _history_room(self, size: int) -> float:
        """Whether older mail may be fetched now: 0, or the seconds after which to ask again."""
        self._turned()
        if self._work.relieved() or self._work.full() or self._work.depth() >= HISTORY_DEPTH:
            return HISTORY_SECONDS
        return 0.0 if self._budget.ask(size, HISTORY_SHARE) else BUDGET_SECONDS

    def _settle(self, connection: ImapMailbox, *, last: bool = False) -> None:
        """Correct the budget by what came; where Redis is away, what was asked for has to do."""
        with suppress(TransientError):
            self._budget.settle(connection.received, last=last)

    def _wait_for_room(self, connection: ImapMailbox, size: int) -> bool:
        """Hold until the stream has room and the budget bytes, keeping the connection; False when told to stop."""
        while not self._stop.is_set():
            self._turned()
            reason = self._work.full() or ("" if self._budget.ask(size) else "IMAP_BYTES_PER_DAY is used up")
            self._hold(reason)
            if not reason:
                return True
            self._keep_alive(connection)
            self._stop.wait(ROOM_SECONDS)
        return False

    def _hold(self, reason: str) -> None:
        if reason != self._held:
            self._held = reason
            self._observe(Held(self._account.name, reason))

    def _keep_alive(self, connection: ImapMailbox) -> None:
        if time.monotonic() - self._spoke > KEEPALIVE_SECONDS:
            connection.noop()
            self._spoke = time.monotonic()

    def _sit_out(self, error: TransientError, connection: ImapMailbox) -> None:
        """Redis or the ledger is away: the mail can wait on the server, and the connection need not be made again."""
        self._away(error)
        self._keep_alive(connection)

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
            self._audit_due = self._audit_soonest
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
            seconds = self._lockout.begin(error.retry_after)
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
        self._observe(Turned(self._loop))

    def _watching(self, state: str) -> None:
        self._observe(Watching(self._account.name, state))
