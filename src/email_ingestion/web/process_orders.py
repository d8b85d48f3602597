"""Orders to the running processes, as `pause`, `degrade`, `feature` and the others give them, for pages and the API.

An order to the processes of this machine goes to their ops ports and needs no Redis; one to all goes through Redis.
Each stands in the audit log: the first as the process that obeys writes it, the second as written here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from urllib.parse import quote

from email_ingestion.errors import OperationFailed
from email_ingestion.fleet.admin_client import AdminClient, RunningProcess, matching, running_processes
from email_ingestion.ops.audit_log import audited_action
from email_ingestion.overrides import BATCH_SIZE, BLOCK, FEATURE, LEVEL, PAUSE, PRIORITY, Level, Override, check_order
from email_ingestion.settings import Settings
from email_ingestion.stream import SharedOverrides
from email_ingestion.web.jobs import Job
from email_ingestion.web.live_system import LiveSystem

Component = Literal["producer", "worker"]
BreakerState = Literal["OPEN", "CLOSED", "AUTO"]
LogLevelName = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


class OrderGiver(Protocol):
    """Who gives an order: a person at a page, or a program with a token."""

    @property
    def name(self) -> str:
        """The name in the audit log."""

    def audit_record(self, action: str, **details: Any) -> dict[str, Any]:
        """Return the line of the audit log about an order, without its result."""


@dataclass(frozen=True, slots=True)
class ProcessOrder:
    """What the ops ports of a component's processes are told, all components' without one; `shared` is it in Redis.

    An override of None ends what holds for all.
    """

    component: Component | None
    path: str
    body: Mapping[str, Any]
    shared: tuple[str, Override | None] | None = None


def pause_order(component: Component, seconds: float, by: str) -> ProcessOrder:
    """Take no new work for a while."""
    return ProcessOrder(
        component, "pause", {"ttl_seconds": seconds}, (f"{PAUSE}:{component}", Override("", seconds, by))
    )


def resume_order(component: Component) -> ProcessOrder:
    """End a pause."""
    return ProcessOrder(component, "resume", {}, (f"{PAUSE}:{component}", None))


def level_order(level: Level, seconds: float, by: str) -> ProcessOrder:
    """Serve less for a while; NORMAL ends that."""
    shared = (LEVEL, None if level == "NORMAL" else Override(level, seconds, by))
    return ProcessOrder(None, "degrade", {"level": level, "ttl_seconds": seconds}, shared)


def priority_order(minimum: int, seconds: float, by: str) -> ProcessOrder:
    """Take only mail of a priority or more for a while; 0 ends that."""
    shared = (PRIORITY, Override(str(minimum), seconds, by) if minimum else None)
    return ProcessOrder("worker", "priority", {"min_priority": minimum, "ttl_seconds": seconds}, shared)


def log_level_order(level: LogLevelName, seconds: float) -> ProcessOrder:
    """Log more or less for a while."""
    return ProcessOrder(None, "log-level", {"level": level, "ttl_seconds": seconds})


def part_order(name: str, value: str, seconds: float, by: str) -> ProcessOrder:
    """Change one part of the work for a while; an empty value takes that back. Raises OperationFailed for a wrong one.

    A feature is the producer's, a batch and a blocked sender are the workers', a sink concerns both.
    """
    if problem := check_order(name, value or None):
        raise OperationFailed(problem)
    component: Component | None = (
        "producer" if name.startswith(FEATURE) else "worker" if name.startswith((BATCH_SIZE, BLOCK)) else None
    )
    shared = (name, Override(value, seconds, by) if value else None)
    return ProcessOrder(component, "order", {"name": name, "value": value, "ttl_seconds": seconds}, shared)


class ProcessOrders:
    """Carries orders out; each method returns a sentence that says what was done.

    Raises OperationFailed with what a process says against it, and the errors of Redis.
    """

    def __init__(self, settings: Settings, system: LiveSystem) -> None:
        self._settings = settings
        self._system = system

    def tell(self, giver: OrderGiver, order: ProcessOrder, job: Job, *, everywhere: bool = False) -> str:
        """Give an order to the processes of this machine, or to all `everywhere`."""
        if everywhere and order.shared:
            return self._tell_all(giver, *order.shared, job)
        component = order.component
        found = matching(
            running_processes(self._settings),
            lambda each: component is None or each.component == component,
            f"is a {component}" if component else "answers",
        )
        return self._post(giver, found, order.path, order.body, job)

    def tell_breaker(self, giver: OrderGiver, name: str, state: BreakerState, seconds: float, job: Job) -> str:
        """Hold a circuit breaker in every process of this machine that has it."""

        def has_it(process: RunningProcess) -> bool:
            return any(each["name"] == name for each in process.body["circuit_breakers"])

        found = matching(running_processes(self._settings), has_it, f"has a circuit breaker {name}")
        body = {"state": state, "ttl_seconds": seconds}
        return self._post(giver, found, f"breakers/{quote(name, safe='')}", body, job)

    def _post(
        self, giver: OrderGiver, processes: list[RunningProcess], path: str, body: Mapping[str, Any], job: Job
    ) -> str:
        client = AdminClient(self._settings, giver.name)
        job.begin("asking the processes", len(processes))
        done, refused = [], []
        for process in processes:
            try:
                client.post(process, path, body)
                done.append(process.stem)
            except OperationFailed as error:
                refused.append(str(error))
            job.advance(1)
        self._system.processes.forget()
        answered = f"Done by {', '.join(done)}." if done else ""
        if refused:
            raise OperationFailed(f"{'; '.join(refused)}. {answered}".strip())
        return answered

    def _tell_all(self, giver: OrderGiver, name: str, override: Override | None, job: Job) -> str:
        job.begin("writing to Redis", 1)
        value, seconds = (override.value, override.seconds) if override else (None, 0)
        record = giver.audit_record("fleet order", order=name, value=value, seconds=seconds)
        with audited_action(self._settings.log_dir, record):
            shared = SharedOverrides(self._system.link)
            shared.set(name, override) if override else shared.clear(name)
        self._system.processes.forget()
        return "Written for all processes: each obeys within seconds."
