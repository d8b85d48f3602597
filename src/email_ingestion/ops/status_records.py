"""Plain records of a process, of Redis and of other processes, as status and metrics show them.

Times are Unix seconds; None means unknown, or that nothing is there that has a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from email_ingestion.breaker import BreakerSnapshot

Component = Literal["producer", "worker", "web"]
TokenState = Literal["valid", "expiring", "refresh failing", "client refused", "re-authorize"]
CONSENT_WARNING = 3 * 86400.0  # seconds before its end from which a consent is `expiring`


@dataclass(frozen=True, slots=True)
class Identity:
    """Which process this is; `number` tells the workers of one host apart."""

    component: Component
    instance: str
    version: str
    number: int = 1

    @property
    def stem(self) -> str:
        """The name of its files: `producer`, `worker`, `worker-2`."""
        return self.component if self.number == 1 else f"{self.component}-{self.number}"


@dataclass(frozen=True, slots=True)
class Names:
    """The closed sets that label values and status lines are taken from.

    `dependencies` maps a name to whether the process can do nothing without it, `loops` a name to the allowed silence
    in seconds; without its `main_loop` the process does nothing; the disks of `folders` must not fill up.
    """

    dependencies: Mapping[str, bool] = field(default_factory=dict)
    loops: Mapping[str, float] = field(default_factory=dict)
    accounts: tuple[str, ...] = ()
    sinks: tuple[str, ...] = ()
    breakers: tuple[str, ...] = ()
    stream: str | None = None
    dlq: str | None = None
    folders: Mapping[str, Path] = field(default_factory=dict)
    main_loop: str | None = None
    flow: tuple[str, ...] = ()  # loops that hand mail over, and turn every second or so whatever happens


@dataclass(frozen=True, slots=True)
class StreamState:
    """The stream, all partitions together."""

    depth: int | None
    pending: int | None
    waiting: int | None
    oldest_timestamp: float | None
    max_deliveries: int | None
    oldest_pending_timestamp: float | None = None
    newer: int = 0  # pending entries that only a newer release can read


@dataclass(frozen=True, slots=True)
class DlqState:
    """The dead letter queue."""

    depth: int | None
    oldest_timestamp: float | None
    replayed: int | None = None  # since the queue exists, by any process


@dataclass(frozen=True, slots=True)
class RedisState:
    """One reading of everything that is shown of Redis."""

    stream: StreamState
    dlq: DlqState
    active_workers: int | None
    memory_used_bytes: int | None
    memory_max_bytes: int | None  # 0 = unlimited
    evicted_keys: int | None = None  # since Redis started
    missing_processes: Mapping[Component, int] = field(default_factory=dict)
    sinks_oldest: Mapping[str, float] = field(default_factory=dict)  # of each that some mail waits for, by the workers
    idle_workers: int | None = None  # that live and can deliver nothing
    clock_offset: float | None = None  # seconds by which this machine's clock is before Redis'


@dataclass(frozen=True, slots=True)
class HistoryState:
    """How far the mail that was there before the first run was read; `seconds` is how long the rest takes."""

    remaining: int
    done: float
    seconds: float | None


@dataclass(frozen=True, slots=True)
class QuarantineState:
    """The messages of one mailbox that the server lists but does not send."""

    messages: Mapping[int, str] = field(default_factory=dict)  # by UID: why; without the accepted ones
    accepted: int = 0  # which an operator has given up


@dataclass(frozen=True, slots=True)
class AccountState:
    """One account, as far as it is known from events."""

    name: str
    mailbox: str | None = None
    watch: str | None = None
    refused: tuple[str, ...] = ()  # commands that the server refuses and that are done without
    alert: str | None = None  # what the server wanted told last
    alerted_at: float | None = None
    last_uid: int | None = None
    uidvalidity: int | None = None
    backlog: int | None = None
    last_success: float | None = None
    history: HistoryState | None = None
    bytes_today: int | None = None
    byte_budget: int | None = None
    token_expires_at: float | None = None
    authorization: TokenState | None = None  # without `expiring`, which depends on the time of reading
    consent_ends_at: float | None = None
    reauth_required: bool = False
    quarantine: Mapping[str, QuarantineState] = field(default_factory=dict)  # by mailbox

    @property
    def quarantined(self) -> int:
        """Messages in quarantine, in all mailboxes, without the accepted ones."""
        return sum(len(each.messages) for each in self.quarantine.values())


@dataclass(frozen=True, slots=True)
class LoopFailure:
    """The last failure of a loop, since the last time that it went well; times in monotonic seconds."""

    reason: str
    unforeseen: bool
    count: int
    since: float
    shown_until: float
    lasting: bool = True  # it has not gone well since


@dataclass(frozen=True, slots=True)
class SinkWait:
    """What has waited longest for a sink, and since when it is the same; `since` in monotonic seconds."""

    oldest: float | None  # as in the event SinkBacklog, from which the reason is too
    resends: int | None
    since: float
    reason: str | None


@dataclass(frozen=True, slots=True)
class Check:
    """The last result of a dependency's probe."""

    name: str
    critical: bool
    status: Literal["healthy", "unhealthy", "unknown"] = "unknown"
    response_time_ms: float | None = None
    error: str | None = None
    error_type: str | None = None
    checked_at: float | None = None  # Unix seconds
    checked_tick: float | None = None  # monotonic seconds


@dataclass(frozen=True, slots=True)
class Peer:
    """Another process of the system, from its heartbeat in Redis or its PID file."""

    component: str
    instance: str
    pid: int | None
    alive: bool | None
    ready: bool | None
    ops_url: str | None
    seen_at: float | None
    pending: int = 0  # entries of the stream in its name
    pid_file: bool = False  # whether it left one on this machine


Breakers = Callable[[], Sequence[BreakerSnapshot]]
RedisView = Callable[[], RedisState | None]
"""The latest reading; None when Redis could not be read, or not lately. Never waits."""
