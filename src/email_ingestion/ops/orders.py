"""What an operator may order over HTTP, checked and carried out; who may is `admin`'s business.

The web framework that reads orders is loaded with the first of them: 0.25 s and 4 MB that hardly any process needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from email_ingestion.errors import EmailIngestionError
from email_ingestion.events import Action
from email_ingestion.ops.admin import ORDERS, Admin, Answer, refused, who
from email_ingestion.ops.redaction import redact
from email_ingestion.overrides import Level

BAD_REQUEST, CONFLICT = 400, 409

Seconds = Annotated[float, Field(ge=1, le=7 * 86_400)]


class _Order(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Timed(_Order):
    """An order that ends by itself."""

    ttl_seconds: Seconds = 900


class BreakerOrder(Timed):
    """Hold a breaker, or with AUTO leave it to itself."""

    state: Literal["OPEN", "CLOSED", "AUTO"]


class LevelOrder(Timed):
    """Serve at this level."""

    level: Level


class PriorityOrder(Timed):
    """Leave mail of a lower priority where it is; 0 takes that back."""

    min_priority: Annotated[int, Field(ge=0, le=10)]


class LogOrder(Timed):
    """Log from this level up."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"]


class RevokeOrder(_Order):
    """Take a message away from whoever handles it."""

    email_id: Annotated[str, Field(min_length=1, max_length=512)]


def orders_app(admin: Admin) -> FastAPI:
    """The routes; synchronous, so that they run beside the event loop: an order may ask a dependency first."""
    app, desk = FastAPI(docs_url=None, redoc_url=None, openapi_url=None), admin.desk

    def breaker(request: Request, name: str, order: BreakerOrder) -> Response:
        return _carry_out(admin, request, "breaker", {"name": name, **order.model_dump()}, desk.breaker, name, order)

    def pause(request: Request, order: Timed) -> Response:
        by = who(request.scope)["user"]
        return _carry_out(admin, request, "pause", order.model_dump(), desk.pause, order.ttl_seconds, by)

    def resume(request: Request) -> Response:
        return _carry_out(admin, request, "resume", {}, desk.resume)

    def degrade(request: Request, order: LevelOrder) -> Response:
        by = who(request.scope)["user"]
        details = order.model_dump()
        return _carry_out(admin, request, "degrade", details, desk.degrade, order.level, order.ttl_seconds, by)

    def priority(request: Request, order: PriorityOrder) -> Response:
        least, seconds, by = order.min_priority, order.ttl_seconds, who(request.scope)["user"]
        return _carry_out(admin, request, "priority", order.model_dump(), desk.priority, least, seconds, by)

    def log_level(request: Request, order: LogOrder) -> Response:
        return _carry_out(admin, request, "log-level", order.model_dump(), desk.log_level, order)

    def revoke(request: Request, order: RevokeOrder) -> Response:
        return _carry_out(admin, request, "revoke", order.model_dump(), desk.revoke, order.email_id)

    def invalid(request: Request, error: Exception) -> Response:
        reason = _said(error) if isinstance(error, RequestValidationError) else "it cannot be read"
        return refused(admin, request.scope, BAD_REQUEST, {"reason": reason})

    app.add_exception_handler(RequestValidationError, invalid)
    answers: dict[Action, Callable[..., Response]] = {
        "breaker": breaker,
        "pause": pause,
        "resume": resume,
        "degrade": degrade,
        "priority": priority,
        "log-level": log_level,
        "revoke": revoke,
    }
    for action, answer in answers.items():
        app.add_api_route(f"/admin/{ORDERS[action]}", answer, methods=["POST"], response_model=None)
    return app


def _carry_out(
    admin: Admin,
    request: Request,
    action: Action,
    details: dict[str, Any],
    order: Callable[..., Answer],
    *arguments: Any,
) -> Response:
    try:
        state = order(*arguments)
    except EmailIngestionError as error:
        return refused(admin, request.scope, CONFLICT, {**details, "reason": redact(str(error))})
    admin.note(request.scope, action, "done", details)
    return JSONResponse({"status": "done", "state": state})


def _said(error: RequestValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    return f"{where or 'the body'}: {first['msg'].lower()}"
