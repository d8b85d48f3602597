"""A worker and a producer as they are shown, without the processes; working fakes for the tests beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from email_ingestion.events import BreakerState
from email_ingestion.ops.status_records import DlqState, Identity, Names, RedisState, StreamState

WORKER = Identity("worker", "worker-1", "1.2.3")
PRODUCER = Identity("producer", "producer", "1.2.3")
WORKER_NAMES = Names(
    dependencies={"redis": True, "database": False, "webhook": False},
    loops={"consume": 30.0},
    sinks=("database", "webhook"),
    breakers=("redis", "webhook"),
    stream="{email_ingestion}:stream",
    dlq="{email_ingestion}:dlq",
    folders={"data": Path(), "logs": Path()},
)
PRODUCER_NAMES = Names(
    dependencies={"redis": True, "imap": False},
    loops={"watch": 30.0},
    accounts=("default", "second"),
    breakers=("redis", "imap", "oauth2"),
    stream="{email_ingestion}:stream",
    dlq="{email_ingestion}:dlq",
    folders={"data": Path(), "logs": Path()},
)
READING = RedisState(
    StreamState(7, 3, 4, 1000.0, 2, 1001.0),
    DlqState(1, 900.0, 5),
    2,
    1_000_000,
    0,
    0,
    {"producer": 0, "worker": 1},
    idle_workers=0,
    clock_offset=0.2,
)


@dataclass
class FakeBreaker:
    """A breaker that does what a test says."""

    name: str
    state: BreakerState = "CLOSED"
    failure_count: int = 0
    success_count: int = 0
    fail_max: int = 5
    recovery_timeout: float = 30.0
    success_threshold: int = 2
    retry_after_seconds: float | None = None
    forced: bool = False
    last_error: str | None = None
    last_error_type: str | None = None
    last_state_change: str | None = None


class Clock:
    """Time that stands still until a test moves it."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
