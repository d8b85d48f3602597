"""The answers of the ops server as pydantic models, for `/docs` and `/openapi.json`.

The bodies themselves come from `status_json` and are sent without validation, so that `/status` stays fast; a test
compares them with these models, the order of the keys included.
"""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from email_ingestion.events import BreakerState
from email_ingestion.ops.readiness import ReadinessStatus
from email_ingestion.ops.status_records import Component, TokenState
from email_ingestion.overrides import Level, Scope


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", defer_build=True)  # a schema is built when it is first shown


class _ProcessAnswer(_Answer):
    component: Component
    instance: str
    status: str
    version: str
    pid: int
    started_at: str
    uptime_seconds: float
    timestamp: str


class LoopAnswer(_Answer):
    """A loop of the process; ages in seconds."""

    name: str
    last_iteration_age_seconds: float
    allowed_silence_seconds: float
    ok: bool


class CheckAnswer(_Answer):
    """The last probe of a dependency."""

    name: str
    status: Literal["healthy", "unhealthy", "unknown"]
    critical: bool
    response_time_ms: float | None
    error: str | None
    error_type: str | None
    checked_at: str | None
    age_seconds: float | None


class BreakerAnswer(_Answer):
    """A circuit breaker."""

    name: str
    state: BreakerState
    failure_count: int
    success_count: int
    fail_max: int
    recovery_timeout: float
    success_threshold: int
    retry_after_seconds: float | None
    forced: bool
    last_error: str | None
    last_error_type: str | None
    last_state_change: str | None


class StreamAnswer(_Answer):
    """The stream, all partitions together; null while Redis cannot be read."""

    name: str | None
    depth: int | None
    pending: int | None
    waiting: int | None
    oldest_age_seconds: float | None
    max_deliveries: int | None
    ok: bool
    collected_at: str | None


class DlqAnswer(_Answer):
    """The dead letter queue."""

    name: str | None
    depth: int | None
    oldest_age_seconds: float | None


class HistoryAnswer(_Answer):
    """How far the mail that is older than the first start has been read."""

    remaining: int
    percent: float
    eta_seconds: float | None


class QuarantinedAnswer(_Answer):
    """A message that the mail server lists but does not send as it is."""

    mailbox: str
    uid: int
    reason: str | None


class AccountAnswer(_Answer):
    """A mail account."""

    name: str
    mailbox: str | None
    watch: str | None
    refused: list[str]
    alert: str | None
    alert_age_seconds: float | None
    last_uid: int | None
    uidvalidity: int | None
    backlog: int | None
    last_success_age_seconds: float | None
    history: HistoryAnswer | None
    bytes_today: int | None
    byte_budget: int | None
    token_expires_in_seconds: float | None
    token_state: TokenState | None
    consent_expires_in_seconds: float | None
    reauth_required: bool
    quarantined: list[QuarantinedAnswer]
    quarantine_accepted: int


class StatisticsAnswer(_Answer):
    """Numbers of messages since the start of the process; null for the numbers of the other component."""

    produced: int | None
    processed: int | None
    failed: int | None
    dead_lettered: int | None
    duplicates: int | None
    orphans_claimed: int | None


class PeerAnswer(_Answer):
    """Another process."""

    component: str
    instance: str
    pid: int | None
    alive: bool | None
    ready: bool | None
    ops_url: str | None
    seen_age_seconds: float | None


class OverrideAnswer(_Answer):
    """An override of an operator that is in force."""

    by: str
    scope: Scope
    ends_in_seconds: float


class PartOrderAnswer(OverrideAnswer):
    """An order about one part of the work."""

    name: str
    value: str


class OverridesAnswer(_Answer):
    """All overrides of operators."""

    paused: bool
    pause: OverrideAnswer | None
    level: Level
    degradation: OverrideAnswer | None
    min_priority: int
    priority: OverrideAnswer | None
    orders: list[PartOrderAnswer]


class HealthAnswer(_ProcessAnswer):
    """Liveness: whether the loops of the process turn."""

    status: Literal["alive", "stalled"]
    reasons: list[str]
    loops: list[LoopAnswer]


class FullHealthAnswer(HealthAnswer):
    """`/health?full=1`: liveness, and whether every check and circuit breaker is well."""

    unhealthy: list[str]
    checks: list[CheckAnswer]
    circuit_breakers: list[BreakerAnswer]


class ReadyAnswer(_ProcessAnswer):
    """Readiness: whether the process does its work."""

    status: ReadinessStatus
    reasons: list[str]
    checks: list[CheckAnswer]


class ClockAnswer(_Answer):
    """This machine's clock against that of a server: positive when it is before it."""

    server: str
    offset_seconds: float | None


class StatusAnswer(_ProcessAnswer):
    """All that is known of the process; an unknown value is null."""

    status: ReadinessStatus
    reasons: list[str]
    circuit_breakers: list[BreakerAnswer]
    checks: list[CheckAnswer]
    stream: StreamAnswer
    dlq: DlqAnswer
    accounts: list[AccountAnswer]
    statistics: StatisticsAnswer
    peers: list[PeerAnswer]
    clocks: list[ClockAnswer]
    control: OverridesAnswer


class LogLevelAnswer(_Answer):
    """The log level in force."""

    level: str


class AllocationAnswer(_Answer):
    """A line of the program, and what it holds of what it allocated."""

    place: str
    bytes: int
    blocks: int


class ObjectCountAnswer(_Answer):
    """How many objects of a type there are."""

    type: str
    count: int


class MemoryAnswer(_Answer):
    """The memory of a process, watched for a while."""

    seconds: float
    rss_bytes: int
    rss_growth_bytes: int
    held_bytes: int
    peak_bytes: int
    lines: list[AllocationAnswer]
    objects: list[ObjectCountAnswer]


class RevokedAnswer(_Answer):
    """Whether the message was taken away from the worker."""

    revoked: bool


class IncidentsAnswer(_Answer):
    """The number of the incident of each alert, or `over`."""

    incidents: dict[str, str]


State = TypeVar("State", BreakerAnswer, OverridesAnswer, LogLevelAnswer, RevokedAnswer, IncidentsAnswer, MemoryAnswer)


class DoneAnswer(_Answer, Generic[State]):
    """An order was carried out; `state` is read back afterwards."""

    status: Literal["done"]
    state: State


class RefusedAnswer(_Answer):
    """An order was refused."""

    status: Literal["refused"]
    reasons: list[str]
