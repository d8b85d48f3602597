"""One account's watcher: connect, sync, wait for more, and recover from whatever goes wrong.

    connect ─▶ sync ─▶ IDLE (poll as safety net) ─▶ sync ─▶ …
       ▲        ▲  ├─▶ quarantined messages that are due ──┐ │
       │        │  ├─▶ a batch of older mail, if any ──────┤ │
       │        │  ├─▶ labels that changed, now and then ──┤ │
       │        │  └─▶ a step of reconcile, if due ────────┤ │
       │        └──────────────────────────────────────────┘ │
       └── back-off ◀── failure        session ended: at once ◀──┘

The path of a new message: `Watcher._sync_and_idle` ─▶ `NewMailSync.run` lists UIDs and selects ─▶ `AppendPipeline.run`
waits for capacity, has `MessageFetcher` fetch the bodies, and appends them with the cursor in one script.

`account_backoff` decides how long a failure keeps the watcher away. Credentials that were refused are tried again when
they change, or the settings do. Older mail, labels and reconcile advance in small steps between syncs, so that new mail
never waits for them. A turn that gets nothing done is followed by a pause: one second for each command that it sent.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from email_ingestion.backoff import jittered
from email_ingestion.breaker import Breaker
from email_ingestion.errors import (
    AuthenticationFailed,
    CircuitBreakerError,
    ConfigurationError,
    EmailIngestionError,
    IMAPCommandRefused,
    IMAPConnectionError,
    IMAPLockedOut,
    IMAPThrottledError,
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
from email_ingestion.mailbox.imap_mailbox import REPLACED, SelectedMailbox
from email_ingestion.producer.account_backoff import AccountBackoff, Delay
from email_ingestion.producer.backpressure import HISTORY_SECONDS, Backpressure, DownloadBudget, StreamCapacity
from email_ingestion.producer.connector import Connector
from email_ingestion.producer.label_sync import LabelSync
from email_ingestion.producer.quarantine_retry import QuarantineRetry
from email_ingestion.producer.reconcile_schedule import ReconcileSchedule
from email_ingestion.producer.suspicion import MessageQuarantined
from email_ingestion.producer.sync import HistorySync, NewMailSync
from email_ingestion.settings import Account
from email_ingestion.stream import Lockout

REDIS_SECONDS = 1.0  # Redis is near and cheap to ask, and its breaker spares it
PROBE_SECONDS = 0.2  # the shortest wait while another thread probes whether it is back
COMMAND_SECONDS = 1.0  # for each command of a turn that gets nothing done
MAX_PACE_SECONDS = 10.0
CAPACITY_SECONDS = 2.0  # between two looks for new mail while older mail waits for capacity
# An IDLE ends this long before CB_RECOVERY_TIMEOUT, but after the least time, even when nothing comes: its end finds a
# peer that died in silence.
IDLE_MARGIN_SECONDS = 10.0
LEAST_IDLE_SECONDS = 5.0
BACK_SECONDS = 10.0  # beyond CB_RECOVERY_TIMEOUT, in which mail is read again after an outage
RECONNECT_SECONDS = 3.0  # of them, for a new session
LEAST_SILENCE_SECONDS = 3.0
LOST_SESSIONS = 2  # in a row, after which a single pass tells the messages over which they end apart (`suspicion`)
# At least, between two looks whether the open mailbox is still the one of its name; and the part of the time that they
# may take, for a server may open a large one slowly.
CHECK_SECONDS, CHECK_SHARE = 20.0, 0.02
MAX_CHECK_SECONDS = 3600.0  # while each look finds another mailbox
SESSION_SPREAD = 0.1  # of a session's length, so that the accounts of a process do not reconnect together


@dataclass(frozen=True, slots=True)
class Intervals:
    """How long things last, in seconds."""

    poll: float
    idle: float
    session: float
    reconcile: float  # infinite: never
    recovery: float  # until mail is read again after an outage


@dataclass(frozen=True, slots=True)
class MailboxTasks:
    """What a watcher does on one connection to one mailbox."""

    new_mail: NewMailSync
    history: HistorySync
    labels: LabelSync
    quarantine: QuarantineRetry
    # Starts a comparison of the mailbox with what became of its mail; gets what waits until a gap may be filled.
    reconcile: Callable[[Callable[[], bool]], Iterator[None]]


class Watcher:
    """`run` runs in a thread of its own; `once` makes a single pass and raises what went wrong."""

    def __init__(
        self,
        account: Account,
        intervals: Intervals,
        *,
        connector: Connector,
        imap_breaker: Breaker,
        make_tasks: Callable[[ImapMailbox, SelectedMailbox], MailboxTasks],
        capacity: StreamCapacity,
        budget: DownloadBudget,
        lockout: Lockout,
        backoff: AccountBackoff,
        give_up: Callable[[EmailIngestionError], None],
        observe: Observe,
    ) -> None:
        self._account = account
        self._intervals = intervals
        self._connector = connector
        self._imap = imap_breaker
        self._make_tasks = make_tasks
        self._lockout = lockout
        self._backoff = backoff
        self._give_up = give_up
        self._observe = observe
        self._stop = threading.Event()
        self._backpressure = Backpressure(
            account.name, capacity, budget, stopped=self._stop, tick=self._tick, observe=observe
        )
        self._reconcile_schedule = ReconcileSchedule(capacity, intervals.reconcile, imap_breaker)
        self._connection: ImapMailbox | None = None
        self._locked_out = False
        self._state = ""
        self._activity = 0
        self._slowed = 0.0
        self._progress = time.monotonic()
        self.synced_at = -math.inf  # when a synchronization succeeded last, monotonic
        self._next_check = self._progress + CHECK_SECONDS  # of the mailbox's identity
        self._replacements = 0  # in a row, that such a look has found
        self._attempt: float | None = None  # since when it tries to open the mailbox
        self._turn: _Turn | None = None  # of the last session
        self._idle_turns = 0  # in a row, that got nothing done and were short
        self.is_outdated = False  # its credentials were refused, and have changed since they were read
        self._credentials = connector.credentials_version()

    def run(self) -> None:
        """Watch until `stop`, or until another process reads the account, or until it `is_outdated`."""
        while not self._stop.is_set() and not self.is_outdated:
            self._tick()
            try:
                if not self._wait_out_lockout() and self._wait_for_login():
                    self._session()
            except LeaseLost as error:
                self._observe(SessionEnded(self._account.name, str(error)))
                break
            except EmailIngestionError as error:
                if not self._stop.is_set():
                    self._recover(error)
            except Exception as error:  # noqa: BLE001 - the watcher must not die silently, whatever happened
                seconds = self._backoff.next_delay()
                self._observe(LoopFailed(self._loop, error, seconds))
                self._report_state("waiting")
                self._pause(seconds)
        self._report_state("stopped")

    @property
    def owes_comparison(self) -> bool:
        """Whether a comparison that was asked for has not come to its end."""
        return self._reconcile_schedule.is_owed

    def compare_soon(self) -> None:
        """Compare the mailbox with the ledger as soon as the connection is free; from any thread."""
        self._reconcile_schedule.run_soon()
        connection = self._connection
        if connection:  # which may wait for new mail, for a minute
            connection.interrupt()

    def _session(self) -> None:
        """Use one connection, from login to its planned end."""
        self._report_state("connecting")
        self._attempt = time.monotonic()
        with closing(self._connect()) as connection:
            try:
                mailbox = self._select(connection)
                self._attempt = None
                self._sync_and_idle(connection, mailbox)
            finally:
                self._connector.review(connection)
                self._backpressure.correct_budget(connection, last=True)

    def _sync_and_idle(self, connection: ImapMailbox, mailbox: SelectedMailbox) -> None:
        """Sync, do some of the other tasks, IDLE, and sync again until the session is to end."""
        tasks = self._make_tasks(connection, mailbox)
        sync = partial(
            tasks.new_mail.run, self._backpressure.for_new_mail, partial(self._backpressure.pause, connection)
        )
        reconcile = partial(tasks.reconcile, partial(self._backpressure.wait, connection))
        other_tasks = self._other_tasks(tasks)
        self._reconcile_schedule.abort()
        spread = 1 - SESSION_SPREAD * self._backoff.rng.random()
        session_seconds = self._connector.session_seconds(self._intervals.session) * spread
        turn = self._turn = _Turn(connection, tasks)
        while not self._stop.is_set():
            self._pace(turn, session_seconds - connection.age)
            turn = self._turn = _Turn(connection, tasks)
            self._report_state("syncing")
            started = time.monotonic()
            try:
                if not self._imap.run(sync):
                    return
                self._succeeded(started, connection)
                self._backpressure.correct_budget(connection)
                if self._imap.run(tasks.quarantine.run):
                    self._reconcile_schedule.run_soon()
                idle_seconds = self._imap.run(lambda: next(other_tasks))  # noqa: B023 - it is run at once
                reconciling = bool(idle_seconds) and self._reconcile_schedule.step(reconcile)
                turn.advanced = reconciling or not idle_seconds
            except (RedisConnectionError, CircuitBreakerError, SinkUnavailable) as error:
                self._reconcile_schedule.abort()
                other_tasks = self._other_tasks(tasks)
                self._dependency_failed(error)  # the mail can wait on the server, and the connection can stay
                self._backpressure.keep_alive(connection)
                continue
            if connection.age > session_seconds:
                self._observe(SessionEnded(self._account.name, "planned renewal"))
                return
            if idle_seconds and not reconciling:
                maximum = min(idle_seconds, session_seconds - connection.age, tasks.quarantine.seconds_until_due)
                self._idle(connection, maximum)
                self._check_mailbox(connection, mailbox)

    def _other_tasks(self, tasks: MailboxTasks) -> Iterator[float]:
        """Take a step of older mail and one of labels; yield for how many seconds neither has anything to do."""
        history = tasks.history.steps(self._backpressure.for_history)
        labels = tasks.labels.steps(self._backpressure.for_labels)
        while True:
            yield min(next(history), next(labels))

    def _idle(self, connection: ImapMailbox, maximum: float) -> None:
        """Wait for new mail in IDLE, or where there is none until the next poll."""
        if maximum <= HISTORY_SECONDS:
            self._report_state("idle" if connection.can_idle else "poll")
            self._await_capacity()
            return
        maximum = max(0.0, min(self._intervals.poll, maximum, self._reconcile_schedule.seconds_until_due))
        if connection.can_idle:
            self._report_state("idle")
            seconds = min(maximum, self._intervals.idle, self._longest_idle)
            connection.wait(seconds, longest_silence(self._intervals.recovery, seconds))
            self._connector.report(connection)
        if not connection.can_idle:
            self._report_state("poll")
            connection.wait(maximum)

    @property
    def _longest_idle(self) -> float:
        return max(LEAST_IDLE_SECONDS, self._intervals.recovery - IDLE_MARGIN_SECONDS)

    def _await_capacity(self) -> None:
        """Wait until older mail may be fetched, but not long: new mail may have come. The mail server is not asked."""
        end = time.monotonic() + CAPACITY_SECONDS
        while time.monotonic() < end and not self._stop.wait(HISTORY_SECONDS):
            if self._backpressure.takes_history():
                return

    def _pace(self, turn: _Turn, maximum: float) -> None:
        """After turns that got nothing done, wait a second for each command of the last, the time it took included."""
        if turn.moved:
            self._backoff.progressed()
        wait = turn.commands * COMMAND_SECONDS - turn.seconds
        if turn.moved or turn.advanced or wait <= 0:
            self._idle_turns = 0
            return
        self._idle_turns += 1
        if self._idle_turns > 1:  # the first is free: what woke us was no mail, and mail may follow at once
            self._pause(min(MAX_PACE_SECONDS, wait, maximum))

    def _check_mailbox(self, connection: ImapMailbox, mailbox: SelectedMailbox) -> None:
        """See now and then whether the open mailbox is still the one of that name: an IDLE does not always tell."""
        started = time.monotonic()
        if started < self._next_check:
            return
        is_replaced = self._imap.run(lambda: connection.is_replaced(mailbox))
        seconds = (time.monotonic() - started) / CHECK_SHARE
        # A server that gives the mailbox another UIDVALIDITY at each look would have all its mail fetched at each.
        self._replacements = self._replacements + 1 if is_replaced else 0
        spacing = min(MAX_CHECK_SECONDS, CHECK_SECONDS * 4**self._replacements)
        self._next_check = time.monotonic() + max(spacing, seconds, min(self._intervals.poll, self._longest_idle))
        if is_replaced:
            raise SessionExpired(REPLACED)

    def _succeeded(self, started: float, connection: ImapMailbox) -> None:
        self._backoff.reset()
        self.synced_at = time.monotonic()
        seconds = self.synced_at - started
        self._observe(Probed("imap", ok=True, seconds=seconds, error=None, account=self._account.name))
        self._connector.report(connection)
        if connection.throttle_delay != self._slowed:
            self._slowed = connection.throttle_delay
            self._observe(Slowed(self._account.name, self._slowed))
        self._tick()

    def _connect(self) -> ImapMailbox:
        self._connection = self._connector.connect()
        return self._connection

    def _select(self, connection: ImapMailbox) -> SelectedMailbox:
        def find_and_select() -> SelectedMailbox:
            return connection.examine(connection.find_mailbox(self._account.imap_mailbox))

        try:
            return self._imap.run(find_and_select)
        except MailboxGone:  # renamed between LIST and SELECT, when the owner changed the language
            return self._imap.run(find_and_select)

    # A single pass

    def once(self) -> bool:
        """Make one pass over the mailbox; False when it was stopped before its end. Raises what went wrong."""
        lost = 0
        while True:
            connection = None
            try:
                with closing(self._connect()) as connection:
                    try:
                        return self._pass(connection, self._select(connection))
                    finally:
                        self._backpressure.correct_budget(connection, last=True)
            except (SessionExpired, StaleCursor, MessageQuarantined) as error:  # a long pass outlives its session
                lost = 0
                self._observe(SessionEnded(self._account.name, str(error)))
                self._pause(self._backoff.after(error).seconds)
            except (IMAPThrottledError, IMAPCommandRefused):
                raise
            except IMAPConnectionError as error:
                lost += 1
                if connection is None or lost > LOST_SESSIONS:
                    raise
                seconds = self._backoff.after(error).seconds
                self._observe(ConnectionFailed(self._account.name, error, seconds))
                self._pause(seconds)

    def _pass(self, connection: ImapMailbox, mailbox: SelectedMailbox) -> bool:
        """Bring in everything, new mail first; waits for older mail too, for perhaps no worker empties the stream."""
        tasks = self._make_tasks(connection, mailbox)
        fetch_delay, pause = self._backpressure.for_new_mail, partial(self._backpressure.pause, connection)
        if not self._imap.run(lambda: tasks.new_mail.run(fetch_delay, pause)):
            return False
        history = tasks.history.steps(fetch_delay)
        while not self._stop.is_set():
            seconds = self._imap.run(lambda: next(history))
            if seconds == math.inf:
                return True
            self._backpressure.correct_budget(connection)
            if seconds:
                pause(seconds)
        return False

    # For other threads

    def stop(self) -> None:
        """CursorEnd soon, whatever it is waiting for; from any thread."""
        self._stop.set()
        connection = self._connection
        if connection:
            connection.interrupt()

    def abandon(self) -> None:
        """Stop, and cut the connection under whatever it hangs in; from any thread."""
        self.stop()
        connection = self._connection
        if connection:
            connection.abort()

    def idle_for(self) -> float:
        """Return the seconds without progress that were not spent in a deliberate wait; from any thread."""
        connection = self._connection
        if connection and connection.activity != self._activity:
            self._activity = connection.activity
            self._tick()
        return time.monotonic() - self._progress

    def answer_progress(self) -> tuple[int, int] | None:
        """Return the number of the answer that is awaited, and the bytes that came so far; None in IDLE and in pauses.

        From any thread.
        """
        connection = self._connection
        answer = connection.awaited_answer if connection and self._state == "syncing" else None
        return (answer, connection.received_bytes) if connection and answer else None

    def asks_server(self) -> bool:
        """Tell whether it waits for the mail server, not for the database, Redis or a disk; from any thread."""
        connection = self._connection
        return not connection or self._state != "syncing" or connection.awaited_answer is not None

    # Failures

    def _recover(self, error: EmailIngestionError) -> None:
        """Report what ended a session, and stay away as long as it asks for."""
        if isinstance(error, (RedisConnectionError, SinkUnavailable)):
            self._dependency_failed(error)
            return
        if isinstance(error, StaleCursor):
            self._reconcile_schedule.run_soon()
        spent = time.monotonic() - self._attempt if self._attempt else 0.0
        delay = self._backoff.after(error, spent)
        if isinstance(error, IMAPLockedOut):
            delay = Delay(delay.kind, self._record_lockout(error))
        self._report_failure(error, delay)
        if delay.kind == "normal" and not delay.seconds:
            return
        self._report_state("needs_operator" if delay.kind == "operator" else "waiting")
        if delay.kind != "locked_out":  # its end is in Redis, and waited for by `_wait_out_lockout`
            self.is_outdated = self._pause(delay.seconds, until_changed=delay.kind == "operator")

    def _dependency_failed(self, error: TransientError) -> None:
        """Wait shortly, because Redis or the ledger is away."""
        seconds = jittered(REDIS_SECONDS, self._backoff.rng)
        if isinstance(error, CircuitBreakerError):  # no later than its next probe, which costs nothing to wait for
            seconds = min(REDIS_SECONDS, max(error.retry_after, PROBE_SECONDS))
        ledger = isinstance(error, SinkUnavailable)
        failed = LoopFailed(self._loop, error, seconds) if ledger else RedisFailed(error, seconds, self._loop)
        self._observe(failed)
        self._report_state("waiting")
        self._pause(seconds)

    def _wait_out_lockout(self) -> bool:
        """Wait while the mail server shuts the account out; False when it lets the account in now."""
        seconds = self._lockout.remaining()
        if seconds:
            until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))
            self._locked_out = True
            self._backpressure.report(f"the mail server has shut the account out until {until}")
            self._report_state("locked_out")
            self._pause(min(seconds, self._intervals.poll))  # an operator may lift it in Redis
            return True
        if self._locked_out:
            self._locked_out = False
            self._backpressure.report("")
            self._observe(LockedOut(self._account.name, None, 0.0))
        return False

    def _record_lockout(self, error: IMAPLockedOut) -> float:
        """Write the lockout down where a restart finds it; return the seconds it lasts."""
        try:
            seconds = self._lockout.start(error.retry_after)
        except TransientError as redis_error:
            self._dependency_failed(redis_error)
            seconds = error.retry_after
            self._pause(seconds)
        self._observe(LockedOut(self._account.name, error, time.time() + seconds))
        return seconds

    def _report_failure(self, error: EmailIngestionError, delay: Delay) -> None:
        account = self._account.name
        if isinstance(error, (SessionExpired, StaleCursor, MessageQuarantined)):
            self._observe(SessionEnded(account, str(error)))
            return
        if isinstance(error, (AuthenticationFailed, IMAPConnectionError)):
            self._observe(ConnectionFailed(account, error, delay.seconds))
        if isinstance(error, IMAPConnectionError) or self._is_server_spared(error):
            self._observe(Probed("imap", ok=False, seconds=0.0, error=error, account=account))
        if delay.kind == "operator":
            if isinstance(error, ConfigurationError) and not self._backoff.ever_succeeded:
                self._give_up(error)
            self._observe(NeedsOperator(account, error))
        elif not isinstance(error, (AuthenticationFailed, IMAPConnectionError, CircuitBreakerError, TokenRefreshError)):
            self._observe(LoopFailed(self._loop, error, delay.seconds))

    def _is_server_spared(self, error: EmailIngestionError) -> bool:
        """Tell whether the mail server is not asked because it failed, perhaps for another account on it."""
        return isinstance(error, CircuitBreakerError) and error.name == self._imap.name and not self._imap.is_forced

    def _pause(self, seconds: float, *, until_changed: bool = False) -> bool:
        """Wait and tick, for a long pause is no stall. With `until_changed` other credentials end it: then True.

        Other ones than at our start: a secret is often replaced before the old one is refused.
        """
        end = time.monotonic() + seconds
        while not self._stop.wait(min(1.0, max(0.0, end - time.monotonic()))) and time.monotonic() < end:
            self._tick()
            if until_changed and self._connector.credentials_version() != self._credentials:
                return True
        return False

    def _wait_for_login(self) -> bool:
        """Wait until the account may be logged in to again; False when the watcher was stopped."""
        if self._turn and self._turn.moved:
            self._backoff.progressed()
        self._turn = None
        if seconds := self._backoff.login_delay():
            self._report_state("waiting")
            self._pause(seconds)
        return not self._stop.is_set()

    @property
    def _loop(self) -> str:
        return f"watch:{self._account.name}"

    def _tick(self) -> None:
        self._progress = time.monotonic()
        self._observe(LoopTick(self._loop))

    def _report_state(self, state: str) -> None:
        self._state = state
        self._observe(Watching(self._account.name, state))


def longest_silence(recovery: float, idle: float) -> float:
    """Return for how long a server may leave the end of an IDLE of `idle` seconds unanswered, until it is given up.

    A peer that died in silence is then found, and another session made, in the time that is promised.
    """
    return max(LEAST_SILENCE_SECONDS, recovery + BACK_SECONDS - idle - RECONNECT_SECONDS)


class _Turn:
    """One turn of a session: what it has achieved and what it cost."""

    def __init__(self, connection: ImapMailbox, tasks: MailboxTasks) -> None:
        self._connection = connection
        self._tasks = tasks
        self._started = time.monotonic()
        self._commands = connection.sent_commands
        self._moves = tasks.new_mail.moves + tasks.history.moves
        self.advanced = False  # older mail, labels or a comparison came further

    @property
    def commands(self) -> int:
        """The commands that were sent in it."""
        return self._connection.sent_commands - self._commands

    @property
    def seconds(self) -> float:
        """How long it has lasted."""
        return time.monotonic() - self._started

    @property
    def moved(self) -> bool:
        """Whether the cursor has moved."""
        return self._tasks.new_mail.moves + self._tasks.history.moves > self._moves
