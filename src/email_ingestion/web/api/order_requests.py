"""`POST /api/v1/…`: the orders of the pages, for programs with a token of the scope operate; each is audited.

An order that takes longer than a moment is answered with 202, and `orders/ID` says how far it is.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from email_ingestion.errors import OperationFailed
from email_ingestion.ops.redaction import redact
from email_ingestion.overrides import MAX_NAME, SINK, Level
from email_ingestion.stream.dead_letters import DeadLetterFilter, group_failures
from email_ingestion.web.api.answers import ERRORS, LettersAnswer, OrderAnswer, ResendAnswer
from email_ingestion.web.api.authorization import Caller, OperatingCaller, OperatorOfAll, refuse
from email_ingestion.web.api.emails import EmailId, find_message
from email_ingestion.web.api.state import ENTRY_ID
from email_ingestion.web.api_errors import WebError
from email_ingestion.web.context import context_of
from email_ingestion.web.jobs import Job, Jobs
from email_ingestion.web.ledger_access import SEARCH_SECONDS
from email_ingestion.web.letter_orders import LetterOrder, LetterOrders
from email_ingestion.web.message_resend import resend_message
from email_ingestion.web.process_orders import (
    BreakerState,
    Component,
    LogLevelName,
    ProcessOrder,
    ProcessOrders,
    level_order,
    log_level_order,
    part_order,
    pause_order,
    priority_order,
    resume_order,
)

WAIT_SECONDS = 5.0  # for the end of an order, before it is answered as running
STEP_SECONDS = 0.02
MOST_IDS = 1000
ACCEPTED, NOT_FOUND, CONFLICT = 202, 404, 409
NOT_DONE = "not_done"
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"model": OrderAnswer, "description": "It is done."},
    202: {"model": OrderAnswer, "description": "It goes on; `orders/ID` says how far it is."},
}
router = APIRouter(prefix="/api/v1", tags=["orders"], responses=ERRORS)

Seconds = Annotated[float, Field(ge=1, le=7 * 86_400, description="It ends by itself after so long.")]
Everywhere = Annotated[bool, Field(description="Every process on every machine, through Redis; else those here.")]


class _Order(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ComponentOrder(_Order):
    """Which processes."""

    component: Component
    everywhere: Everywhere = False


class TimedComponentOrder(ComponentOrder):
    """Which processes, for a while."""

    ttl_seconds: Seconds = 900


class ServiceLevelOrder(_Order):
    """What is still served; NORMAL serves all again."""

    level: Level
    ttl_seconds: Seconds = 3600
    everywhere: Everywhere = False


class LeastPriorityOrder(_Order):
    """Mail below it waits; 0 takes that back."""

    min_priority: Annotated[int, Field(ge=0, le=10)]
    ttl_seconds: Seconds = 3600
    everywhere: Everywhere = False


class LogLevelOrder(_Order):
    """From which level on is logged."""

    level: LogLevelName
    ttl_seconds: Seconds = 900


class PartOfWorkOrder(_Order):
    """`batch-size` (a number), `feature:NAME` (off), `sink:NAME` (paused), `block:PATTERN` (blocked).

    An empty value takes it back.
    """

    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
    value: Annotated[str, Field(max_length=MAX_NAME)] = ""
    ttl_seconds: Seconds = 3600
    everywhere: Everywhere = False


class HoldBreakerOrder(_Order):
    """Hold it open or closed; AUTO leaves it to itself."""

    state: BreakerState
    ttl_seconds: Seconds = 900


class SinkOrder(_Order):
    """Which sink of SINKS."""

    sink: Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


class LettersOrder(_Order):
    """Which dead letters; every condition that is given holds. With `preview` nothing is done."""

    reason: Annotated[str | None, Field(max_length=100)] = None
    error_type: Annotated[str | None, Field(max_length=200)] = None
    fingerprint: Annotated[str | None, Field(max_length=200)] = None
    account: Annotated[str | None, Field(max_length=100)] = None
    ids: Annotated[tuple[Annotated[str, Field(pattern=f"^{ENTRY_ID.pattern}$")], ...], Field(max_length=MOST_IDS)] = ()
    all: Annotated[bool, Field(description="All of them, where no condition is given.")] = False
    preview: bool = False


@router.post("/pause", response_model=None, responses=ANSWERS)
async def pause(request: Request, order: TimedComponentOrder, caller: OperatorOfAll) -> Response:
    """Let producer or workers take no new work for a while."""
    given = pause_order(order.component, order.ttl_seconds, caller.name)
    return await _tell(request, caller, f"Pause {order.component}", given, everywhere=order.everywhere)


@router.post("/resume", response_model=None, responses=ANSWERS)
async def resume(request: Request, order: ComponentOrder, caller: OperatorOfAll) -> Response:
    """Let paused processes go on."""
    given = resume_order(order.component)
    return await _tell(request, caller, f"Resume {order.component}", given, everywhere=order.everywhere)


@router.post("/level", response_model=None, responses=ANSWERS)
async def level(request: Request, order: ServiceLevelOrder, caller: OperatorOfAll) -> Response:
    """Serve less for a while, or all again."""
    given = level_order(order.level, order.ttl_seconds, caller.name)
    return await _tell(request, caller, f"Serve {order.level}", given, everywhere=order.everywhere)


@router.post("/priority", response_model=None, responses=ANSWERS)
async def priority(request: Request, order: LeastPriorityOrder, caller: OperatorOfAll) -> Response:
    """Let workers take only mail of a priority or more for a while."""
    given = priority_order(order.min_priority, order.ttl_seconds, caller.name)
    title = f"Take mail of priority {order.min_priority} or more"
    return await _tell(request, caller, title, given, everywhere=order.everywhere)


@router.post("/log-level", response_model=None, responses=ANSWERS)
async def log_level(request: Request, order: LogLevelOrder, caller: OperatorOfAll) -> Response:
    """Let the processes of this machine log more or less for a while."""
    given = log_level_order(order.level, order.ttl_seconds)
    return await _tell(request, caller, f"Log from {order.level}", given, everywhere=False)


@router.post("/parts", response_model=None, responses=ANSWERS)
async def parts(request: Request, order: PartOfWorkOrder, caller: OperatorOfAll) -> Response:
    """Change one part of the work for a while: batch size, a feature, a sink, a sender whose mail is put aside."""
    name = order.name.strip().lower() if order.name.startswith("block:") else order.name
    sinks = context_of(request).settings.sinks[1:]
    if name.startswith(SINK) and name.removeprefix(SINK) not in sinks:
        raise await refuse(request, caller, CONFLICT, f"there is no such sink beside the database: {name}", NOT_DONE)
    try:
        given = part_order(name, order.value, order.ttl_seconds, caller.name)
    except OperationFailed as error:
        raise await refuse(request, caller, CONFLICT, str(error), NOT_DONE) from error
    title = f"{name} {order.value}" if order.value else f"{name} as the settings say"
    return await _tell(request, caller, title, given, everywhere=order.everywhere)


@router.post("/breakers/{name:path}", response_model=None, responses=ANSWERS)
async def breaker(
    request: Request, name: Annotated[str, Path(max_length=MAX_NAME)], order: HoldBreakerOrder, caller: OperatorOfAll
) -> Response:
    """Hold a circuit breaker of this machine's processes open or closed for a while, or leave it to itself."""
    orders: ProcessOrders = request.app.state.operator_pages.orders

    def work(job: Job) -> str:
        return orders.tell_breaker(caller, name, order.state, order.ttl_seconds, job)

    return await _carry_out(request, caller, f"Circuit breaker {name}: {order.state}", work)


@router.post("/emails/{email_id}/resend", response_model=None, responses={200: {"model": ResendAnswer}})
async def resend(request: Request, email_id: EmailId, order: SinkOrder, caller: OperatingCaller) -> Response:
    """Owe a message to one sink again, whatever the routes say; the workers deliver it."""
    web = context_of(request)
    if order.sink not in web.settings.sinks[1:]:
        raise await refuse(request, caller, CONFLICT, f"there is no sink {order.sink!r} beside the database", NOT_DONE)

    def work() -> dict[str, Any]:
        identity = find_message(web, caller, email_id).email_id
        found = resend_message(web, caller, identity, order.sink)
        if found.failed:
            raise WebError(CONFLICT, f"it is not sent again: {'; '.join(found.failed.values())}", code=NOT_DONE)
        outcome = "owed" if found.owed else "waiting" if found.waiting else "dead"
        return {"email_id": identity, "sink": order.sink, "outcome": outcome}

    return JSONResponse(await web.access.within(SEARCH_SECONDS, work, "the database"))


@router.post(
    "/dead-letters/{action}", response_model=None, responses=ANSWERS | {200: {"model": OrderAnswer | LettersAnswer}}
)
async def letters(request: Request, action: LetterOrder, order: LettersOrder, caller: OperatingCaller) -> Response:
    """Put dead letters back into the stream, or write them into a file of BACKUP_DIR and delete exactly those.

    With `preview` only what would be done is answered.
    """
    orders: LetterOrders = request.app.state.letter_orders
    only = DeadLetterFilter(
        order.reason, order.error_type, order.fingerprint, caller.allowed_account(order.account or None)
    )
    if not (order.ids or order.all or only != DeadLetterFilter(account=caller.account)):
        reason = 'all of them cannot be meant by silence: give a condition, or "all": true'
        raise await refuse(request, caller, 400, reason)
    if order.preview:
        look = context_of(request).access.within(SEARCH_SECONDS, lambda: _preview(orders, only, order.ids), "Redis")
        return JSONResponse(await look)

    def work(job: Job) -> str:
        return orders.carry_out(action, only, caller, job, order.ids)

    which = " ".join(filter(None, (only.reason, only.error_type, only.fingerprint, only.account, *order.ids[:3])))
    return await _carry_out(request, caller, f"{action.capitalize()} dead letters {which}".strip(), work)


@router.get("/orders/{order_id}", response_model=None, responses={200: {"model": OrderAnswer}})
async def order_state(
    request: Request, order_id: Annotated[str, Path(max_length=64)], caller: OperatingCaller
) -> Response:
    """How far an order of this token is; 409 with the reason of one that failed."""
    jobs: Jobs = request.app.state.jobs
    job = jobs.find(order_id)
    if job is None or job.user != caller.name:
        raise WebError(NOT_FOUND, "this token gave no such order since the web process started; see the audit log")
    return _answer(job)


async def _tell(request: Request, caller: Caller, title: str, order: ProcessOrder, *, everywhere: bool) -> Response:
    orders: ProcessOrders = request.app.state.operator_pages.orders

    def work(job: Job) -> str:
        return orders.tell(caller, order, job, everywhere=everywhere)

    return await _carry_out(request, caller, title + ", everywhere" * everywhere, work)


async def _carry_out(request: Request, caller: Caller, title: str, work: Callable[[Job], str]) -> Response:
    """Begin an order and wait a moment for its end. Raises WebError 409 when it fails, or runs already."""
    jobs: Jobs = request.app.state.jobs
    try:
        job = jobs.start(title, caller.name, "/", work)
    except OperationFailed as error:
        raise await refuse(request, caller, CONFLICT, str(error), NOT_DONE) from error
    until = time.monotonic() + WAIT_SECONDS
    while job.state == "running" and time.monotonic() < until:  # noqa: ASYNC110 - a thread ends it
        await anyio.sleep(STEP_SECONDS)
    return _answer(job)


def _answer(job: Job) -> Response:
    if job.state == "failed":
        raise WebError(CONFLICT, job.result, code=NOT_DONE)
    body = {
        "id": job.id,
        "title": job.title,
        "state": job.state,
        "step": job.step,
        "done": job.done,
        "total": job.total,
        "result": job.result,
        "started_at": _instant(job.started_at),
        "ended_at": None if job.ended_at is None else _instant(job.ended_at),
    }
    return JSONResponse(body, ACCEPTED if job.state == "running" else 200)


def _instant(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _preview(orders: LetterOrders, only: DeadLetterFilter, ids: tuple[str, ...]) -> dict[str, Any]:
    found = list(orders.select(only, ids))
    groups = [
        {
            "fingerprint": each.fingerprint,
            "count": each.count,
            "first": each.first,
            "last": each.last,
            "reason": each.reason,
            "error_type": each.error_type,
            "error": redact(each.error),
        }
        for each in group_failures(found)
    ]
    return {
        "preview": True,
        "matched": len(found),
        "accounts": dict(Counter(each.account for each in found)),
        "groups": groups,
    }
