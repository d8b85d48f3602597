"""One frozen record for each fact the loops announce; `ops` turns them into log lines, counts and status.

The loops know nothing of logs or metrics: they call an `Observe` with one of these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

BreakerState = Literal["CLOSED", "OPEN", "HALF_OPEN"]
Action = Literal["breaker", "pause", "resume", "degrade", "priority", "log-level", "revoke", "unknown"]
Outcome = Literal["done", "refused"]


@dataclass(frozen=True, slots=True)
class Event:
    """A fact; the root of all of them."""


@dataclass(frozen=True, slots=True)
class Started(Event):
    """The process has its ports, its PID file and its objects."""

    settings_source: str


@dataclass(frozen=True, slots=True)
class Stopping(Event):
    """A stop was asked for; what is in flight is finished first."""

    reason: str


@dataclass(frozen=True, slots=True)
class Stopped(Event):
    """Nothing is left to do."""


@dataclass(frozen=True, slots=True)
class LoopTick(Event):
    """A loop completed an iteration: it lives."""

    loop: str


@dataclass(frozen=True, slots=True)
class Stalled(Event):
    """A loop has not turned for too long."""

    loop: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Connected(Event):
    """An IMAP login succeeded."""

    account: str


@dataclass(frozen=True, slots=True)
class ConnectionFailed(Event):
    """An IMAP connection could not be made or was lost."""

    account: str
    error: Exception
    retry_in: float  # seconds


@dataclass(frozen=True, slots=True)
class SessionEnded(Event):
    """An IMAP session ended as planned, by us or by the server's session expiry: no failure."""

    account: str
    reason: str


@dataclass(frozen=True, slots=True)
class LockedOut(Event):
    """The mail server has shut the account out until `until`, in Unix seconds; `error` is None when that is over."""

    account: str
    error: Exception | None
    until: float


@dataclass(frozen=True, slots=True)
class Slowed(Event):
    """The mail server asks for less speed: each command now waits `seconds`; 0 when it no longer does."""

    account: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Quarantined(Event):
    """The server lists a message but does not send it: the mail behind it goes on, and it is asked for again."""

    account: str
    mailbox: str
    uid: int
    error: Exception
    tries: int


@dataclass(frozen=True, slots=True)
class QuarantineCounted(Event):
    """So many messages of an account are listed by the server but not sent."""

    account: str
    count: int


@dataclass(frozen=True, slots=True)
class WatcherRebuilt(Event):
    """A watcher got nothing done for `seconds`: it was given up and another one took its place."""

    account: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Watching(Event):
    """What the account's watcher is doing: connecting, syncing, idle, waiting, locked_out, needs_operator, stopped."""

    account: str
    state: str


@dataclass(frozen=True, slots=True)
class LeaseChanged(Event):
    """The account is read by this process (`holder` None) or by another; `lost`: until now it was this one."""

    account: str
    holder: str | None
    lost: bool


@dataclass(frozen=True, slots=True)
class Synced(Event):
    """A mailbox was compared with the cursor; `backlog` messages above the cursor are not yet in the stream."""

    account: str
    mailbox: str
    uidvalidity: int
    last_uid: int
    backlog: int
    listed_ago: float | None = None  # seconds since the listing that is in the stream now as a whole


@dataclass(frozen=True, slots=True)
class NewMailWaiting(Event):
    """Mail that arrived after the cursor began is on the server and not in the stream, the oldest since `since`."""

    account: str
    since: float  # INTERNALDATE in Unix seconds


@dataclass(frozen=True, slots=True)
class HistoryWalked(Event):
    """How far a mailbox's older mail was read; `remaining` is an estimate, `seconds` the time it takes."""

    account: str
    remaining: int  # messages
    done: float  # share, 0 to 1
    seconds: float | None


@dataclass(frozen=True, slots=True)
class LabelsChanged(Event):
    """Delivered messages have other labels on the server now, and in the database too."""

    account: str
    mailbox: str
    count: int


@dataclass(frozen=True, slots=True)
class Downloaded(Event):
    """Message bytes came over IMAP."""

    account: str
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class Published(Event):
    """Messages were appended to the stream; a resent batch counts only what was new."""

    account: str
    mailbox: str
    email_ids: tuple[str, ...]
    count: int
    size: int  # bytes, raw


@dataclass(frozen=True, slots=True)
class Skipped(Event):
    """Messages were left out on purpose."""

    account: str
    reason: Literal["excluded_label", "before_start", "known", "vanished", "too_large"]
    count: int


@dataclass(frozen=True, slots=True)
class TooLarge(Event):
    """A message is left out because it has more than IMAP_MESSAGE_MAX_BYTES; `size` in bytes."""

    account: str
    mailbox: str
    uid: int
    size: int


@dataclass(frozen=True, slots=True)
class MailboxChanged(Event):
    """The mailbox got a new UIDVALIDITY."""

    account: str
    mailbox: str
    old: int
    new: int


@dataclass(frozen=True, slots=True)
class FetchPaused(Event):
    """The producer stopped fetching for an account (`reason` set) or goes on (`reason` empty)."""

    account: str
    reason: str


@dataclass(frozen=True, slots=True)
class TokenRefreshed(Event):
    """An access token was obtained; times in Unix seconds, `consent_ends_at` None where no end is known."""

    account: str
    expires_at: float
    consent_ends_at: float | None = None


@dataclass(frozen=True, slots=True)
class TokenRefreshFailed(Event):
    """An access token could not be obtained."""

    account: str
    error: Exception
    permanent: bool


@dataclass(frozen=True, slots=True)
class ConsentEnding(Event):
    """The consent behind an account's tokens ends within days, at `ends_at` (Unix seconds), unless it is renewed."""

    account: str
    ends_at: float


@dataclass(frozen=True, slots=True)
class NeedsOperator(Event):
    """An account waits for a person; `error` says what for."""

    account: str
    error: Exception


@dataclass(frozen=True, slots=True)
class Delivered(Event):
    """A message is in the database, with what further sinks are owed of it, and out of the stream."""

    email_id: str
    attempt: int
    duplicate: bool  # the sinks had it already
    duration: float  # seconds of handling, its share of the batch
    queue_wait: float  # seconds from append to delivery to this worker
    end_to_end: float  # seconds from INTERNALDATE to now


@dataclass(frozen=True, slots=True)
class SyntheticHandled(Event):
    """So many messages that are nobody's mail went the whole way, or did not; nothing of them is kept."""

    count: int
    delivered: bool


@dataclass(frozen=True, slots=True)
class CanarySeen(Event):
    """What became of the trial message that goes the way of mail; both None when none came back in time."""

    delivered: bool | None
    took: float | None  # seconds from the stream to its end


@dataclass(frozen=True, slots=True)
class SinkBacklog(Event):
    """What a further sink still has to get; both None when the database does not say."""

    sink: str
    waiting: int | None
    oldest: float | None  # Unix seconds at which the one that has waited longest was recorded; None when none waits


@dataclass(frozen=True, slots=True)
class SinkDelivered(Event):
    """A sink took, or failed to take, part of a batch."""

    sink: str
    result: Literal["delivered", "duplicate", "failed"]
    count: int


@dataclass(frozen=True, slots=True)
class Deferred(Event):
    """An attempt failed; there will be another one."""

    email_id: str
    attempt: int
    error: Exception
    retry_in: float  # seconds
    sink: str | None = None  # None: it did not even come into the database


@dataclass(frozen=True, slots=True)
class DeadLettered(Event):
    """A message left the stream, or what is owed to a sink, for the dead letter queue."""

    email_id: str
    reason: Literal["max_retries", "permanent", "poison", "operator"]
    attempts: int
    error: Exception | None
    sink: str | None = None  # the only one that has not got it; None: none has


@dataclass(frozen=True, slots=True)
class Reclaimed(Event):
    """Entries abandoned by another consumer, or by an earlier life of this one, were taken over."""

    count: int


@dataclass(frozen=True, slots=True)
class OwnershipLost(Event):
    """Entries were completed by somebody else while this worker had them."""

    count: int


@dataclass(frozen=True, slots=True)
class RedisFailed(Event):
    """Redis did not do what it was asked."""

    error: Exception
    retry_in: float  # seconds


@dataclass(frozen=True, slots=True)
class BreakerChanged(Event):
    """A circuit breaker changed its state."""

    name: str
    old: BreakerState
    new: BreakerState
    error: Exception | None


@dataclass(frozen=True, slots=True)
class BreakerRejected(Event):
    """A call was not made because the breaker is open."""

    name: str
    error: Exception


@dataclass(frozen=True, slots=True)
class Probed(Event):
    """A dependency answered its ping or did not."""

    dependency: str
    ok: bool
    seconds: float
    error: Exception | None


@dataclass(frozen=True, slots=True)
class LoopFailed(Event):
    """A loop met an error nobody foresaw; it goes on after a pause."""

    loop: str
    error: Exception


@dataclass(frozen=True, slots=True)
class BytesSpent(Event):
    """How much of an account's daily download budget is gone."""

    account: str
    today: int  # bytes
    budget: int  # bytes


@dataclass(frozen=True, slots=True)
class Reconciled(Event):
    """The server's messages of an account were compared with the ledger."""

    account: str
    missing: int
    duplicate: int
    unexpected: int
    mailbox: str = ""


@dataclass(frozen=True, slots=True)
class BackupFound(Event):
    """The newest verified backup is of `at`, in Unix seconds."""

    at: float


@dataclass(frozen=True, slots=True)
class Administered(Event):
    """An operator gave this process an order over HTTP, or somebody tried to; `reason` says why it was refused."""

    action: Action
    outcome: Outcome
    reason: str | None


@dataclass(frozen=True, slots=True)
class Notified(Event):
    """Somebody was told of what is wrong and of what is over; `sent` is False when a channel did not take it."""

    wrong: int
    over: int
    sent: bool


@dataclass(frozen=True, slots=True)
class StacksDumped(Event):
    """What every thread was doing, on request or because a loop stalled."""

    stacks: str


Observe = Callable[[Event], None]
