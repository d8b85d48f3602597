"""Orders to the running processes, what `doctor` finds, the backups, and the audit log."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import Response

from email_ingestion.backup.archive import Archive, list_archives, read_archive
from email_ingestion.backup.create import BackupProgress, rehearse_restore, working_directory
from email_ingestion.doctor.findings import Finding
from email_ingestion.errors import OperationFailed
from email_ingestion.fleet.redis_server import scratch_redis
from email_ingestion.ops.audit_log import PREVIOUS, audited_action, read_audit
from email_ingestion.ops.redaction import redact
from email_ingestion.overrides import FEATURES, LEVELS, MAX_BATCH, Level
from email_ingestion.settings import Settings
from email_ingestion.web.jobs import Job
from email_ingestion.web.live_system import LiveSystem
from email_ingestion.web.pages.orders import begin_order
from email_ingestion.web.process_orders import (
    BreakerState,
    Component,
    LogLevelName,
    ProcessOrder,
    ProcessOrders,
    level_order,
    log_level_order,
    pause_order,
    priority_order,
    resume_order,
)
from email_ingestion.web.readings import Source
from email_ingestion.web.rendering import render
from email_ingestion.web.sessions import CurrentOperator, CurrentUser, WebUser

PATH = "/operate"
WAIT_SECONDS = 0.6
REFRESH_SECONDS = 30
SPANS = {"5m": 300.0, "15m": 900.0, "1h": 3600.0, "4h": 14_400.0, "24h": 86_400.0}
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
BREAKER_STATES = ("OPEN", "CLOSED", "AUTO")
AUDIT_KEPT, AUDIT_SHOWN = 2000, 200
BACKUP_AGE_SECONDS = 5.0
OWN = frozenset(["timestamp", "user", "action", "result", "pid", "instance", PREVIOUS])

Span = Annotated[Literal["5m", "15m", "1h", "4h", "24h"], Form()]
Everywhere = Annotated[str, Form()]

router = APIRouter(include_in_schema=False)


class OperatorPages:
    """What these pages share; in `app.state.operator_pages`."""

    def __init__(self, settings: Settings, system: LiveSystem) -> None:
        self.settings = settings
        self.orders = ProcessOrders(settings, system)
        self.backups: Source[list[Archive]] = Source("BACKUP_DIR", self._list_backups, BACKUP_AGE_SECONDS)
        self.audit: Source[list[dict[str, Any]]] = Source("the audit log", self._read_audit, 1.0)
        # It is looked at when somebody asks for it, for it logs in to mail servers and writes to sinks' test places.
        self.findings: list[Finding] | None = None
        self.findings_at: float | None = None

    def _list_backups(self) -> list[Archive]:
        try:
            os.listdir(self.settings.backup_dir)
        except OSError as error:
            raise OperationFailed(f"cannot read {self.settings.backup_dir}: {error.strerror}") from error
        return list(list_archives(self.settings.backup_dir))

    def _read_audit(self) -> list[dict[str, Any]]:
        return list(deque(read_audit(self.settings.log_dir), AUDIT_KEPT))[::-1]

    def rehearse(self, user: WebUser, file: str, job: Job) -> str:
        """Restore a backup into a scratch server and compare; nothing is changed."""
        path = self.settings.backup_dir / os.path.basename(file)
        archive = read_archive(path)
        steps = BackupProgress(lambda step, total: job.begin(step, total or 0), lambda done, _total: job.set_done(done))
        with (
            audited_action(self.settings.log_dir, user.audit_record("rehearse", file=str(path))),
            working_directory(self.settings.backup_dir) as folder,
        ):
            rehearse_restore(archive, scratch_redis, steps, folder)
        return f"{path.name} restores: equal to its manifest on a scratch server; nothing was changed."

    def examine(self, user: WebUser, job: Job) -> str:
        """Let `doctor` look at everything."""
        from email_ingestion.doctor.checks import run_checks  # noqa: PLC0415 - only for who asks

        found: list[Finding] = []
        with audited_action(self.settings.log_dir, user.audit_record("doctor")):
            for finding in run_checks():
                found.append(finding)
                job.begin(f"looked at {finding.check}", 0)
                job.set_done(len(found))
        self.findings, self.findings_at = found, job.started_at
        bad = sum(each.verdict != "ok" for each in found)
        return f"{bad} of {len(found)} checks need attention." if bad else "Nothing is wrong."


@router.get(PATH)
def operate(request: Request, user: CurrentUser) -> Response:
    """Show which orders hold, and the forms for new ones."""
    state = request.app.state
    pages: OperatorPages = state.operator_pages
    processes = state.live_system.processes.get(WAIT_SECONDS)
    backups = pages.backups.get(WAIT_SECONDS / 2)
    bodies = [(each.stem, each.body) for each in processes.value or ()]
    breakers = [
        (stem, each, redact(each["last_error"] or ""))
        for stem, body in bodies
        if body
        for each in body["circuit_breakers"]
    ]
    return render(
        request,
        "operate.html",
        user,
        refresh=REFRESH_SECONDS,
        processes=processes,
        bodies=bodies,
        breakers=breakers,
        breaker_names=sorted({each["name"] for _, each, _ in breakers}),
        backups=backups,
        findings=[(each, redact(each.cause)) for each in pages.findings or ()],
        findings_at=pages.findings_at,
        spans=list(SPANS),
        levels=LEVELS,
        log_levels=LOG_LEVELS,
        breaker_states=BREAKER_STATES,
        features=FEATURES,
        sinks=pages.settings.sinks[1:],
        max_batch=MAX_BATCH,
        batch_size=pages.settings.worker_batch_size,
    )


@router.post(PATH + "/pause")
def pause(
    request: Request,
    user: CurrentOperator,
    component: Annotated[Component, Form()],
    ttl: Span = "15m",
    *,
    everywhere: Everywhere = "",
) -> Response:
    """Let producer or workers take no new work for a while."""
    order = pause_order(component, SPANS[ttl], user.name)
    return tell(request, user, f"Pause {component} for {ttl}", order, everywhere)


@router.post(PATH + "/resume")
def resume(
    request: Request, user: CurrentOperator, component: Annotated[Component, Form()], everywhere: Everywhere = ""
) -> Response:
    """Let paused processes go on."""
    return tell(request, user, f"Resume {component}", resume_order(component), everywhere)


@router.post(PATH + "/level")
def level(
    request: Request,
    user: CurrentOperator,
    level: Annotated[Level, Form()],
    ttl: Span = "1h",
    *,
    everywhere: Everywhere = "",
) -> Response:
    """Serve less for a while, or all again."""
    return tell(request, user, f"Serve {level} for {ttl}", level_order(level, SPANS[ttl], user.name), everywhere)


@router.post(PATH + "/priority")
def priority(
    request: Request,
    user: CurrentOperator,
    minimum: Annotated[int, Form(ge=0, le=10)],
    ttl: Span = "1h",
    *,
    everywhere: Everywhere = "",
) -> Response:
    """Let workers take only mail of a priority or more for a while; 0 takes that back."""
    title = f"Take mail of priority {minimum} or more for {ttl}"
    return tell(request, user, title, priority_order(minimum, SPANS[ttl], user.name), everywhere)


@router.post(PATH + "/log-level")
def log_level(
    request: Request, user: CurrentOperator, level: Annotated[LogLevelName, Form()], ttl: Span = "15m"
) -> Response:
    """Let the processes of this machine log more or less for a while."""
    return tell(request, user, f"Log from {level} for {ttl}", log_level_order(level, SPANS[ttl]))


@router.post(PATH + "/breaker")
def breaker(
    request: Request,
    user: CurrentOperator,
    name: Annotated[str, Form(min_length=1, max_length=200)],
    state: Annotated[BreakerState, Form()],
    ttl: Span = "15m",
) -> Response:
    """Hold a circuit breaker open or closed for a while, or leave it to itself."""
    pages: OperatorPages = request.app.state.operator_pages
    title = f"Circuit breaker {name}: {state}" + ("" if state == "AUTO" else f" for {ttl}")
    return _begin(request, user, title, lambda job: pages.orders.tell_breaker(user, name, state, SPANS[ttl], job))


@router.post(PATH + "/doctor")
def doctor(request: Request, user: CurrentOperator) -> Response:
    """Let `doctor` look at everything."""
    pages: OperatorPages = request.app.state.operator_pages
    return _begin(request, user, "Check everything", lambda job: pages.examine(user, job))


@router.post(PATH + "/rehearse")
def rehearse(request: Request, user: CurrentOperator, file: Annotated[str, Form(max_length=300)]) -> Response:
    """Prove that a backup restores."""
    pages: OperatorPages = request.app.state.operator_pages
    return _begin(request, user, f"Rehearse {file}", lambda job: pages.rehearse(user, file, job))


@router.get("/audit")
def audit(
    request: Request,
    user: CurrentUser,
    action: Annotated[str, Query(max_length=100)] = "",
    who: Annotated[str, Query(max_length=100)] = "",
) -> Response:
    """Show what was ordered and which mail was read, newest first."""
    pages: OperatorPages = request.app.state.operator_pages
    reading = pages.audit.get(WAIT_SECONDS)
    found = [
        each
        for each in reading.value or ()
        if str(each.get("action", "")).startswith(action) and who in {"", each.get("user")}
    ]
    rows = [(each, _details(each)) for each in found[:AUDIT_SHOWN]]
    return render(request, "audit.html", user, reading=reading, rows=rows, action=action, who=who, found=len(found))


def tell(request: Request, user: WebUser, title: str, order: ProcessOrder, everywhere: str = "") -> Response:
    """Begin an order to every process, through Redis, where `everywhere` says something; else to those here."""
    pages: OperatorPages = request.app.state.operator_pages
    title += ", everywhere" if everywhere else ""
    return _begin(request, user, title, lambda job: pages.orders.tell(user, order, job, everywhere=bool(everywhere)))


def _begin(request: Request, user: WebUser, title: str, work: Callable[[Job], str]) -> Response:
    return begin_order(request, user, title, PATH, work, action=f"web {request.url.path}")


def _details(record: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in record.items() if name not in OWN and value not in (None, "", [])}
    return " ".join(f"{name}={_short(value)}" for name, value in shown.items())


def _short(value: Any) -> Any:
    if isinstance(value, list):
        shown = ", ".join(map(str, value[:3]))
        return f"{shown} and {len(value) - 3} more" if len(value) > 3 else shown  # noqa: PLR2004
    return value
