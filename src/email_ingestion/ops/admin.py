"""`POST /admin/…`: the orders of operators, who may give them, how they are carried out and where they are recorded.

`request_guard` lets only those through that carry the token of OPS_TOKEN_FILE and come from no web page. Every order,
carried out or refused, is recorded in `audit.log`; of refused strangers, a few a minute and the number of the others.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import Scope

from email_ingestion.breaker import Breaker
from email_ingestion.errors import ConfigurationError, EmailIngestionError, OperationFailed
from email_ingestion.events import Action, Administered, Observe, Outcome
from email_ingestion.ops import status_json
from email_ingestion.ops.api_models import (
    BreakerAnswer,
    DoneAnswer,
    IncidentsAnswer,
    LogLevelAnswer,
    MemoryAnswer,
    OverridesAnswer,
    RefusedAnswer,
    RevokedAnswer,
)
from email_ingestion.ops.audit_log import write_audit
from email_ingestion.ops.incident_opener import AlertsOrder, IncidentOpener
from email_ingestion.ops.log_aggregation import RepeatLimiter
from email_ingestion.ops.logs import LogLevel, logger
from email_ingestion.ops.memory_report import watch_memory
from email_ingestion.ops.redaction import redact
from email_ingestion.overrides import MAX_NAME, Level, OperatorOverrides, check_order

TOKEN_BYTES = 32
MIN_TOKEN_LENGTH = 16  # characters
MAX_NAME_LENGTH = 64
UNKNOWN = "unknown"
BAD_REQUEST, UNAUTHORIZED, FORBIDDEN, CONFLICT, UNAVAILABLE = 400, 401, 403, 409, 503
IDLE_WAIT_SECONDS = 5.0  # how long a pause waits for the work in hand before it is answered
IDLE_STEP_SECONDS = 0.05
REFUSAL_SECONDS = 6.0  # between two lines of audit.log about callers without the token
PATHS: dict[Action, str] = {  # below /admin/
    "breaker": "breakers/{name:path}",
    "pause": "pause",
    "resume": "resume",
    "degrade": "degrade",
    "priority": "priority",
    "log-level": "log-level",
    "revoke": "revoke",
    "incident": "incidents",
    "order": "order",
    "memory": "memory",
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": RefusedAnswer, "description": "400 invalid, 401 wrong token, 403 from a web page, 409 impossible."}
}

State = dict[str, Any]
Seconds = Annotated[float, Field(ge=1, le=7 * 86_400)]


class _Order(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TimedOrder(_Order):
    """An order that ends by itself."""

    ttl_seconds: Seconds = 900


class BreakerOrder(TimedOrder):
    """Hold a breaker open or closed, or with AUTO leave it to itself."""

    state: Literal["OPEN", "CLOSED", "AUTO"]


class LevelOrder(TimedOrder):
    """Serve at this level."""

    level: Level


class PriorityOrder(TimedOrder):
    """Leave mail of a lower priority in the stream; 0 takes that back."""

    min_priority: Annotated[int, Field(ge=0, le=10)]


class LogOrder(TimedOrder):
    """Log from this level up."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"]


class PartOrder(TimedOrder):
    """An order about one part of the work, as `overrides` names them; an empty value takes it back."""

    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
    value: Annotated[str, Field(max_length=MAX_NAME)] = ""


class MemoryOrder(_Order):
    """Watch the memory of the process for a while."""

    seconds: Annotated[float, Field(ge=0.1, le=300)] = 30
    top: Annotated[int, Field(ge=1, le=100)] = 10


class RevokeOrder(_Order):
    """Take a message away from the worker that handles it."""

    email_id: Annotated[str, Field(min_length=1, max_length=512)]


class AdminActions:
    """Carries out orders on the live objects of a process; every method returns the state read back.

    The process adds how to ping each dependency, how to revoke a message and when it is idle.
    """

    def __init__(
        self,
        breakers: Callable[[str], Breaker],
        overrides: OperatorOverrides,
        log_level: LogLevel,
        incidents: IncidentOpener | None = None,
    ) -> None:
        self._breakers = breakers
        self.incidents = incidents or IncidentOpener(lambda _event: None)
        self._overrides = overrides
        self._log_level = log_level
        self.pings: dict[str, Callable[[], object]] = {}
        self.revoke_message: Callable[[str], bool] | None = None
        self.is_idle: Callable[[], bool] = lambda: True

    def set_breaker(self, name: str, order: BreakerOrder) -> State:
        """Force or release a breaker. Raises OperationFailed for an unknown name and for an unusable dependency."""
        breaker = self._breakers(name)
        if order.state == "AUTO":
            breaker.release()
        else:
            if order.state == "CLOSED":
                self._ping(name)
            breaker.force(order.state, order.ttl_seconds)
        return asdict(breaker.snapshot())

    def _ping(self, name: str) -> None:
        """Raise OperationFailed when the dependency does not work: a closed breaker would only hide that."""
        try:
            self.pings[name]()
        except KeyError as error:
            raise OperationFailed(f"{name} cannot be asked yet: the process is starting; try again") from error
        except EmailIngestionError as error:
            raise OperationFailed(f"{name} does not work, so its breaker stays as it is: {error}") from error

    def pause(self, seconds: float, operator: str) -> State:
        """Pause the process and wait for a moment until the work in hand is finished."""
        self._overrides.pause(seconds, operator)
        deadline = time.monotonic() + IDLE_WAIT_SECONDS
        while not self.is_idle() and time.monotonic() < deadline:
            time.sleep(IDLE_STEP_SECONDS)
        return status_json.overrides(self._overrides)

    def resume(self) -> State:
        """End a pause of this process."""
        self._overrides.resume()
        return status_json.overrides(self._overrides)

    def degrade(self, level: Level, seconds: float, operator: str) -> State:
        """Serve at `level` for `seconds`."""
        self._overrides.set_level(level, seconds, operator)
        return status_json.overrides(self._overrides)

    def prioritize(self, min_priority: int, seconds: float, operator: str) -> State:
        """Take only mail of at least `min_priority` for `seconds`."""
        self._overrides.prioritize(min_priority, seconds, operator)
        return status_json.overrides(self._overrides)

    def order(self, order: PartOrder, operator: str) -> State:
        """Give an order about one part of the work, or take it back. Raises OperationFailed for one that is wrong."""
        if problem := check_order(order.name, order.value or None):
            raise OperationFailed(problem)
        self._overrides.order(order.name, order.value, order.ttl_seconds, operator)
        return status_json.overrides(self._overrides)

    def set_log_level(self, order: LogOrder) -> State:
        """Log from another level up for a while."""
        self._log_level.set_for(order.level, order.ttl_seconds)
        return {"level": self._log_level.current}

    def revoke(self, email_id: str) -> State:
        """Take a message away from this worker. Raises OperationFailed in a process that handles no messages."""
        if self.revoke_message is None:
            raise OperationFailed("this process handles no messages: ask a worker")
        return {"revoked": self.revoke_message(email_id)}


@dataclass(frozen=True, slots=True)
class Admin:
    """The token that orders need, the actions that carry them out, and where they are recorded."""

    token: str
    actions: AdminActions
    log_dir: Path
    instance: str
    observe: Observe
    refusals: RepeatLimiter = field(default_factory=lambda: RepeatLimiter(REFUSAL_SECONDS, time.monotonic))

    def execute(
        self,
        request: Request,
        action: Action,
        details: dict[str, Any],
        run: Callable[[], State],
        failure: int = CONFLICT,
    ) -> JSONResponse:
        """Carry out an order by calling `run`; record and answer the result, `failure` where it is impossible."""
        try:
            state = run()
        except EmailIngestionError as error:
            return self.refuse(request.scope, failure, {**details, "reason": redact(str(error))})
        self._record(request.scope, action, "done", details)
        return JSONResponse({"status": "done", "state": state})

    def refuse(self, scope: Scope, code: int, details: Mapping[str, Any]) -> JSONResponse:
        """Record and answer an order that is refused; `details` has the reason."""
        left_out = self.refusals.allow(code) if code in {UNAUTHORIZED, FORBIDDEN} else 0
        action: Action = _action(scope)
        if left_out is None:
            self.observe(Administered(action, "refused", details.get("reason")))
        else:
            self._record(scope, action, "refused", {**details, "left_out": left_out} if left_out else details)
        return refusal(details["reason"], code)

    def _record(self, scope: Scope, action: Action, outcome: Outcome, details: Mapping[str, Any]) -> None:
        """Write to the log, the metrics and the audit log; an audit log on a full disk must not prevent a pause."""
        self.observe(Administered(action, outcome, details.get("reason")))
        user = {"user": operator_of(scope), "from": _client(scope)}
        record = {**user, "instance": self.instance, "pid": os.getpid(), "action": f"admin {action}", **details}
        try:
            write_audit(self.log_dir, record | {"result": outcome})
        except ConfigurationError as error:
            logger("ops").error("audit_failed", exc_info=error)


class AdminRoutes:
    """The routes of the orders; synchronous, so that they run in a thread: an order may call a dependency first."""

    def __init__(self, admin: Admin) -> None:
        self._admin = admin
        self._actions = admin.actions

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to `app`."""
        endpoints: dict[Action, tuple[Callable[..., Response], type[BaseModel]]] = {
            "breaker": (self.breaker, BreakerAnswer),
            "pause": (self.pause, OverridesAnswer),
            "resume": (self.resume, OverridesAnswer),
            "degrade": (self.degrade, OverridesAnswer),
            "priority": (self.priority, OverridesAnswer),
            "log-level": (self.log_level, LogLevelAnswer),
            "revoke": (self.revoke, RevokedAnswer),
            "incident": (self.incident, IncidentsAnswer),
            "order": (self.order, OverridesAnswer),
            "memory": (self.memory, MemoryAnswer),
        }
        for action, (endpoint, state) in endpoints.items():
            app.add_api_route(
                f"/admin/{PATHS[action]}",
                endpoint,
                methods=["POST"],
                response_model=DoneAnswer[state],  # type: ignore[valid-type]
                responses=REFUSALS,
                tags=["orders"],
            )
        app.add_exception_handler(RequestValidationError, self.invalid)

    def breaker(self, request: Request, name: str, order: BreakerOrder) -> Response:
        """Hold a circuit breaker open or closed for a while, or leave it to itself."""
        details = {"name": name, **order.model_dump()}
        return self._admin.execute(request, "breaker", details, lambda: self._actions.set_breaker(name, order))

    def pause(self, request: Request, order: TimedOrder) -> Response:
        """Pause the process for a while."""
        operator, seconds = operator_of(request.scope), order.ttl_seconds
        return self._admin.execute(request, "pause", order.model_dump(), lambda: self._actions.pause(seconds, operator))

    def resume(self, request: Request) -> Response:
        """End a pause."""
        return self._admin.execute(request, "resume", {}, self._actions.resume)

    def degrade(self, request: Request, order: LevelOrder) -> Response:
        """Serve at a lower level for a while."""
        operator, seconds = operator_of(request.scope), order.ttl_seconds
        return self._admin.execute(
            request, "degrade", order.model_dump(), lambda: self._actions.degrade(order.level, seconds, operator)
        )

    def priority(self, request: Request, order: PriorityOrder) -> Response:
        """Take only mail of a minimum priority for a while."""
        operator, seconds, minimum = operator_of(request.scope), order.ttl_seconds, order.min_priority
        return self._admin.execute(
            request, "priority", order.model_dump(), lambda: self._actions.prioritize(minimum, seconds, operator)
        )

    def order(self, request: Request, order: PartOrder) -> Response:
        """Change one part of the work for a while: batch size, a feature, a sink, a sender put aside."""
        operator = operator_of(request.scope)
        return self._admin.execute(request, "order", order.model_dump(), lambda: self._actions.order(order, operator))

    def memory(self, request: Request, order: MemoryOrder) -> Response:
        """Watch the memory of the process for a while; the answer comes when that is over."""
        run = partial(watch_memory, order.seconds, order.top)
        return self._admin.execute(request, "memory", order.model_dump(), run)

    def log_level(self, request: Request, order: LogOrder) -> Response:
        """Log from another level up for a while."""
        return self._admin.execute(request, "log-level", order.model_dump(), lambda: self._actions.set_log_level(order))

    def revoke(self, request: Request, order: RevokeOrder) -> Response:
        """Take a message away from the worker that handles it."""
        return self._admin.execute(request, "revoke", order.model_dump(), lambda: self._actions.revoke(order.email_id))

    def incident(self, request: Request, order: AlertsOrder) -> Response:
        """Open an incident for each alert that an Alertmanager says fires; the body is that of its webhook."""
        details = {"alerts": sorted({f"{alert.name} {alert.status}" for alert in order.alerts})}
        run = partial(self._actions.incidents.receive, order)
        return self._admin.execute(request, "incident", details, run, UNAVAILABLE)  # which an Alertmanager repeats

    def invalid(self, request: Request, error: Exception) -> Response:
        """Refuse an order whose body is not valid."""
        reason = _describe(error) if isinstance(error, RequestValidationError) else "it cannot be read"
        return self._admin.refuse(request.scope, BAD_REQUEST, {"reason": reason})


def _describe(error: RequestValidationError) -> str:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return "the body is not JSON"
    field = ".".join(str(part) for part in first["loc"] if part != "body")
    return f"{field or 'the body'}: {first['msg'][:1].lower()}{first['msg'][1:]}"  # a word to send stays as it is


def refusal(reason: str, code: int) -> JSONResponse:
    """Return the answer to a refused request."""
    headers = {"WWW-Authenticate": "Bearer"} if code == UNAUTHORIZED else None
    return JSONResponse({"status": "refused", "reasons": [reason]}, code, headers)


def _action(scope: Scope) -> Action:
    """Return the order that a path stands for."""
    first = str(scope["path"]).removeprefix("/admin/").partition("/")[0]
    return next((action for action, path in PATHS.items() if path.partition("/")[0] == first), "unknown")


def request_headers(scope: Scope) -> dict[str, str]:
    """Return the headers of a request, names in lower case."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def operator_of(scope: Scope) -> str:
    """Return the name that the operator claims: the token proves a permission, not an identity."""
    name = request_headers(scope).get("x-operator", "")[:MAX_NAME_LENGTH]
    return "".join(each for each in name if each.isprintable()) or UNKNOWN


def _client(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else UNKNOWN


def ops_token(path: Path, setting: str = "OPS_TOKEN_FILE") -> str:
    """Return the token in `path`, which is made with mode 0600 when it is missing; `setting` names the file.

    Raises ConfigurationError when it can neither be read nor made, or is too short to protect anything.
    """
    try:
        token = path.read_text().strip() if path.exists() else _make_token(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ConfigurationError(f"{setting}: cannot read or make {path}: {reason}") from error
    if len(token) < MIN_TOKEN_LENGTH:
        raise ConfigurationError(f"{setting}: {path} holds less than {MIN_TOKEN_LENGTH} characters; delete it")
    return token


def _make_token(path: Path) -> str:
    """Make the file and return its token; producer and worker may start at once, and the first one wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # 0600 from the start
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(TOKEN_BYTES) + "\n")
        with suppress(FileExistsError):
            os.link(draft, path)  # a reader never sees half a token
    finally:
        os.unlink(draft)
    return path.read_text().strip()
