"""One frozen record for every fact the loops announce; `ops` turns them into log lines, counts and status.

The loops know nothing of logs or metrics: they call an `Observe` with an event.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from msgspec import Struct

BreakerState = Literal["CLOSED", "OPEN", "HALF_OPEN"]
Action = Literal[
    "breaker", "pause", "resume", "degrade", "priority", "log-level", "revoke", "incident", "order", "memory", "unknown"
]
Outcome = Literal["done", "refused"]
AccountChange = Literal["added", "changed", "paused", "resumed", "removed", "hidden"]


class Event(Struct, frozen=True):
    """A fact; the root of all of them."""


class Started(Event, frozen=True):
    """The process is up: it has its ports, its PID file and its objects."""

    settings_source: str


class Stopping(Event, frozen=True):
    """A stop was requested; work in flight is finished first."""

    reason: str


class Stopped(Event, frozen=True):
    """The process has finished its work and ends."""


class LoopTick(Event, frozen=True):
    """A loop completed an iteration, so it is alive."""

    loop: str


class Stalled(Event, frozen=True):
    """A loop has not turned for too long."""

    loop: str
    seconds: float


class Connected(Event, frozen=True):
    """An IMAP login succeeded; `seconds` is what connection and login took, None where that was not measured."""

    account: str
    seconds: float | None = None


class ConnectionFailed(Event, frozen=True):
    """An IMAP connection could not be made or was lost."""

    account: str
    error: Exception
    retry_in: float  # seconds


class SessionEnded(Event, frozen=True):
    """An IMAP session ended as planned, by us or by the server's session expiry: no failure."""

    account: str
    reason: str


class LockedOut(Event, frozen=True):
    """The mail server has shut the account out until `until`, in Unix seconds; `error` is None when that is over."""

    account: str
    error: Exception | None
    until: float


class ServerAlert(Event, frozen=True):
    """The mail server wants something told to its user (RFC 3501, section 7.1)."""

    account: str
    notice: str


class CommandsRefused(Event, frozen=True):
    """The commands that are done without, for the mail server refuses them or hangs up; none: it takes all again."""

    account: str
    commands: tuple[str, ...]
    reasons: str  # one for each of them


class Slowed(Event, frozen=True):
    """The mail server throttles: every command now waits `seconds`; 0 when it no longer throttles."""

    account: str
    seconds: float


class AnswerSlow(Event, frozen=True):
    """An answer of the mail server has come for `seconds` so slowly that mail stands still; 0 when it is over."""

    account: str
    seconds: float


class Quarantined(Event, frozen=True):
    """The server lists a message but does not send it; later mail is read meanwhile, and this message again later."""

    account: str
    mailbox: str
    uid: int
    error: Exception
    tries: int


class QuarantineCounted(Event, frozen=True):
    """The messages of a mailbox that the server lists but does not send: UIDs and why, and how many are accepted."""

    account: str
    mailbox: str
    messages: tuple[tuple[int, str], ...]  # without the accepted ones
    accepted: int


class WatcherRebuilt(Event, frozen=True):
    """A watcher made no progress for `seconds` and was replaced by another one."""

    account: str
    seconds: float
    asked_server: bool = True  # it waited for the mail server; False: for the database, Redis or a disk


class Watching(Event, frozen=True):
    """An account's watcher is connecting, syncing, idle, poll, waiting, locked_out, needs_operator or stopped now."""

    account: str
    state: str


class AccountUpdated(Event, frozen=True):
    """An account of the database was taken up, changed, paused, resumed or removed, or the settings hide it."""

    account: str
    change: AccountChange


class LeaseChanged(Event, frozen=True):
    """The account is read by this process (`holder` None) or by another; `lost`: until now it was this one."""

    account: str
    holder: str | None
    lost: bool


class Synced(Event, frozen=True):
    """A mailbox was compared with the cursor; `backlog` messages above the cursor are not yet in the stream."""

    account: str
    mailbox: str
    uidvalidity: int
    last_uid: int
    backlog: int
    listed_ago: float | None = None  # seconds since the server listed mail that is all in the stream now


class NewMailWaiting(Event, frozen=True):
    """Mail that arrived after the cursor began is on the server and not in the stream, the oldest since `since`."""

    account: str
    since: float  # INTERNALDATE in Unix seconds


class HistoryWalked(Event, frozen=True):
    """How far a mailbox's older mail was read; `remaining` is an estimate, `seconds` the time it takes."""

    account: str
    remaining: int  # messages
    done: float  # share, 0 to 1
    seconds: float | None


class LabelsChanged(Event, frozen=True):
    """Delivered messages have other labels on the server now, and in the database too."""

    account: str
    mailbox: str
    count: int


class Downloaded(Event, frozen=True):
    """Message bytes came over IMAP."""

    account: str
    size: int  # bytes


class MailboxContradicted(Event, frozen=True):
    """The mailbox is not as it was read, though its UIDVALIDITY is the same; all of it is listed again."""

    account: str
    mailbox: str
    reason: str


class AlteredOnServer(Event, frozen=True):
    """The server has other bytes now for a message that was delivered; nothing is fetched again."""

    account: str
    mailbox: str
    uid: int


class Published(Event, frozen=True):
    """Messages were appended to the stream; a resent batch counts only what was new."""

    account: str
    mailbox: str
    email_ids: tuple[str, ...]
    count: int
    size: int  # bytes, raw


class Skipped(Event, frozen=True):
    """Messages were skipped on purpose."""

    account: str
    reason: Literal["excluded_label", "before_start", "known", "vanished", "too_large"]
    count: int


class TooLarge(Event, frozen=True):
    """A message was skipped because it has more than IMAP_MESSAGE_MAX_BYTES; `size` in bytes."""

    account: str
    mailbox: str
    uid: int
    size: int


class MailboxChanged(Event, frozen=True):
    """The mailbox got a new UIDVALIDITY."""

    account: str
    mailbox: str
    old: int
    new: int


class FetchPaused(Event, frozen=True):
    """The producer stopped fetching for an account (`reason` set) or goes on (`reason` empty)."""

    account: str
    reason: str


class TokenRefreshed(Event, frozen=True):
    """An access token was obtained; times in Unix seconds, `consent_ends_at` None where no end is known."""

    account: str
    expires_at: float
    consent_ends_at: float | None = None


class TokenRefreshFailed(Event, frozen=True):
    """An access token could not be obtained."""

    account: str
    error: Exception
    permanent: bool


class TokenNotSaved(Event, frozen=True):
    """The file of an account's tokens cannot be written: new ones are kept in memory only."""

    account: str
    error: Exception


class ConsentEnding(Event, frozen=True):
    """The consent behind an account's tokens ends within days, at `ends_at` (Unix seconds), unless it is renewed."""

    account: str
    ends_at: float


class NeedsOperator(Event, frozen=True):
    """An account waits for an operator; `error` gives the reason."""

    account: str
    error: Exception


class Delivered(Event, frozen=True):
    """A message is in the database, with its pending deliveries to other sinks, and acknowledged in the stream."""

    email_id: str
    attempt: int
    duplicate: bool  # the sinks had the message already
    duration: float  # seconds: the message's share of the batch's handling
    queue_wait: float  # seconds from append to delivery to this worker
    end_to_end: float  # seconds from INTERNALDATE to now
    history: bool = False  # `RawMessage.history`: such mail says nothing of how fast mail comes
    priority: int = 5  # 0 to 10, after the routes
    tags: tuple[str, ...] = ()  # names of the routes' tags


class SlowMessageFound(Event, frozen=True):
    """A message takes long to parse; it goes on in the slow lane, beside the flow."""

    email_id: str


class OutdatedRecordsCounted(Event, frozen=True):
    """So many records in the database are an older parser's; None when it could not be asked."""

    count: int | None


class DefectsFound(Event, frozen=True):
    """So many of the messages just delivered have defects; `kinds` counts messages by the kind of the defect."""

    messages: int
    kinds: Mapping[str, int]


class VolumeCounted(Event, frozen=True):
    """The mail of the last hour, and what the same hour of past weeks had; None when the database could not be asked.

    By account; the expected number is None where there is nothing to compare with.
    """

    arrived: Mapping[str, tuple[int, float | None]] | None


class SyntheticHandled(Event, frozen=True):
    """Synthetic messages took the whole way of mail, or failed to; nothing of them is kept."""

    count: int
    delivered: bool


class CanarySeen(Event, frozen=True):
    """A canary message took the way of mail or failed to; both fields are None when it did not come back in time."""

    delivered: bool | None
    took: float | None  # seconds from the stream to its end


class SinkBacklog(Event, frozen=True):
    """The messages that another sink has not received yet; all numbers are None when the database cannot be read."""

    sink: str
    waiting: int | None
    oldest: float | None  # Unix seconds since which the oldest of them waits; None when none waits
    resends: int | None = None  # that wait behind them, for an operator had them sent again
    reason: str | None = None  # why the oldest has not moved since the last count; None: it has, or none waits


class SinkCalls(Event, frozen=True):
    """The calls of a sink that have been running for over a second; announced while there are such, and at their end.

    `problem` says what is wrong when one takes unusually long, or the last one took too long; None: all is well.
    """

    sink: str
    calls: tuple[tuple[str, float], ...]  # the message and the Unix seconds of the beginning; the oldest first
    problem: str | None


class SinkHung(Event, frozen=True):
    """A call of a sink has not returned within its time limit and cannot be ended; the sink gets nothing meanwhile."""

    sink: str
    email_id: str
    limit: float  # seconds


class SinkDelivered(Event, frozen=True):
    """A sink took, or failed to take, part of a batch."""

    sink: str
    result: Literal["delivered", "duplicate", "failed"]
    count: int


class ChangesTold(Event, frozen=True):
    """A sink took changes, or failed over them."""

    sink: str
    result: Literal["told", "failed"]
    count: int


class ChangeBacklog(Event, frozen=True):
    """The changes that a sink was not told yet, and those that it refused; None when the database cannot be read."""

    sink: str
    waiting: int | None
    oldest: float | None  # Unix seconds at which the oldest of them was noted; None when none waits
    refused: int | None
    problem: str | None  # why it takes none now


class ChangeRefused(Event, frozen=True):
    """A sink never takes a change: it is not told of it any more, unless an operator orders it."""

    sink: str
    seq: int
    kind: str
    email_id: str
    attempts: int
    error: Exception | None


class ChangesMissed(Event, frozen=True):
    """Changes are not in the feed any more that a sink was not told; it was told that, and where the feed goes on."""

    sink: str
    after: int  # the last number that it was told
    start_from: int


class Deferred(Event, frozen=True):
    """An attempt to deliver a message failed; another one follows."""

    email_id: str
    attempt: int
    error: Exception
    retry_in: float  # seconds
    sink: str | None = None  # None: not even the database has it


class LeftToNewerRelease(Event, frozen=True):
    """An entry has a schema version that only a newer release reads; it stays pending and has spent no attempt."""

    email_id: str
    error: Exception


class DeadLettered(Event, frozen=True):
    """A message, or its delivery to one sink, was moved to the dead letter queue."""

    email_id: str
    reason: Literal["max_retries", "permanent", "poison", "operator", "malformed"]
    attempts: int
    error: Exception | None
    sink: str | None = None  # the only sink that lacks the message; None: all lack it


class Reclaimed(Event, frozen=True):
    """Entries abandoned by another consumer, or by an earlier life of this one, were taken over."""

    count: int


class LedgerWentBack(Event, frozen=True):
    """The ledger is behind what it was: a failover lost commits, or an old backup was restored."""

    before: str  # system, timeline and position
    now: str


class QueuedMailVanished(Event, frozen=True):
    """Mail left the stream though no worker took it: somebody trimmed or deleted it, or Redis evicted it."""

    sign: str  # by which it was noticed
    bytes: int  # that are counted and not there; 0 where that is not known


class SinkClaimLost(Event, frozen=True):
    """Messages that were claimed for a sink are no longer this worker's: it was stopped for longer than its lease."""

    sink: str
    count: int


class DueTimesMended(Event, frozen=True):
    """Deliveries to a sink were due in a future that nobody asked for: the database's clock was ahead for a while."""

    sink: str
    count: int


class KeySetAside(Event, frozen=True):
    """A key of ours in Redis was of another type than we write there, and was moved out of the way."""

    key: str
    kind: str  # its type
    belongs: str  # the type that it should have
    moved_to: str  # the key that it is now


class OwnershipLost(Event, frozen=True):
    """Another worker acknowledged entries while this worker handled them."""

    count: int


class RedisFailed(Event, frozen=True):
    """A call to Redis failed; `loop` is the loop that could not go on, '' for another caller."""

    error: Exception
    retry_in: float  # seconds
    loop: str = ""


class BreakerChanged(Event, frozen=True):
    """A circuit breaker changed its state."""

    name: str
    old: BreakerState
    new: BreakerState
    error: Exception | None


class BreakerRejected(Event, frozen=True):
    """A call was not made because the breaker is open."""

    name: str
    error: Exception


class Probed(Event, frozen=True):
    """A dependency answered its ping or did not; of the mail server, that of an account."""

    dependency: str
    ok: bool
    seconds: float
    error: Exception | None
    account: str | None = None


class LoopFailed(Event, frozen=True):
    """A loop met an error that it has no answer to; it goes on after a pause."""

    loop: str
    error: Exception
    retry_in: float | None = 0.0  # seconds until it tries again; None: it has ended


class LoopRecovered(Event, frozen=True):
    """A loop that had failed has done its work again."""

    loop: str


class BytesSpent(Event, frozen=True):
    """An account has used `today` bytes of its daily download budget."""

    account: str
    today: int  # bytes
    budget: int  # bytes


class Reconciled(Event, frozen=True):
    """The server's messages of an account were compared with the ledger."""

    account: str
    missing: int
    duplicate: int
    unexpected: int
    mailbox: str = ""
    altered: int = 0


class ContentDamaged(Event, frozen=True):
    """Stored bytes were missing or damaged; `problem` says why they could not be had again, None: they are back."""

    email_id: str
    ref: str
    fault: str
    problem: str | None


class ContentsVerified(Event, frozen=True):
    """All stored bytes were read and compared with their hashes; `lost` of them are missing or damaged still."""

    checked: int
    size: int
    restored: int
    lost: int
    seconds: float


class ConsumersProved(Event, frozen=True):
    """What the last comparison of each sink found, and when, in Unix seconds; None: Redis does not tell it."""

    found: Mapping[str, tuple[int, float]] | None


class ConsumerCompared(Event, frozen=True):
    """A sink was compared with what it was given: by identities, not by bytes."""

    sink: str
    missing: int
    not_ours: int
    seconds: float


class ConsumerNotCompared(Event, frozen=True):
    """A sink could not be compared, or not all of it."""

    sink: str
    reason: str


class ErasuresLookedAt(Event, frozen=True):
    """So many erasures and restores began and have not erased all that they were to."""

    unfinished: int


class RetentionApplied(Event, frozen=True):
    """Mail that was older than it is kept was erased; `held` more would have been, `left` says what could not be."""

    erased: int
    held: int
    left: int
    seconds: float


class CertificateSeen(Event, frozen=True):
    """The TLS certificate of a dependency ends at `ends_at`, in Unix seconds."""

    dependency: str
    ends_at: float


class BackupFound(Event, frozen=True):
    """The newest verified backup was made at `at`, in Unix seconds."""

    at: float


class Administered(Event, frozen=True):
    """An order over HTTP was carried out or refused; `reason` says why it was refused."""

    action: Action
    outcome: Outcome
    reason: str | None


class Notified(Event, frozen=True):
    """Operators were notified of active and resolved alerts; `sent` is False when a channel did not take it."""

    wrong: int
    over: int
    sent: bool
    alerts: tuple[str, ...] = ()  # the keys of the active ones
    ended: tuple[str, ...] = ()


class AlertReceived(Event, frozen=True):
    """An alert that opens an incident began to fire or is over: a built-in one, or one of an Alertmanager."""

    alert: str
    priority: str
    firing: bool


class SignalReceived(Event, frozen=True):
    """A signal came that ends nothing; `effect` says what it did."""

    signal: str
    effect: str


class StacksDumped(Event, frozen=True):
    """The stacks of all threads were dumped, on request or because a loop stalled."""

    stacks: str


Observe = Callable[[Event], None]
