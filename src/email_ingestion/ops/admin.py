"""`POST /admin/…`: who may give orders to this process, and where each is written down; `orders` reads them.

Whoever asks must know the token of OPS_TOKEN_FILE and must not be a web page: a page that rebinds its own name to
127.0.0.1 still sends that name as Host, and any page's request carries an Origin. Every order, taken or refused, is
in `audit.log`.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import secrets
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from email_ingestion.errors import ConfigurationError
from email_ingestion.events import Action, Administered, Observe, Outcome
from email_ingestion.ops.audit_log import write_audit
from email_ingestion.ops.logs import logger
from email_ingestion.overrides import Level

if TYPE_CHECKING:
    from email_ingestion.ops.orders import BreakerOrder, LogOrder

READING = ("GET", "HEAD")
TOKEN_BYTES = 32
TOKEN_SHORTEST = 16  # characters
NAME_LONGEST = 64
UNKNOWN = "unknown"
UNAUTHORIZED, FORBIDDEN = 401, 403
ORDERS: dict[Action, str] = {  # and where each is given, below /admin/
    "breaker": "breakers/{name:path}",
    "pause": "pause",
    "resume": "resume",
    "degrade": "degrade",
    "priority": "priority",
    "log-level": "log-level",
    "revoke": "revoke",
}

Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Desk:
    """What the orders reach. Each returns the state read back, or raises an error of ours that says why not."""

    breaker: Callable[[str, BreakerOrder], Answer]
    pause: Callable[[float, str], Answer]
    resume: Callable[[], Answer]
    degrade: Callable[[Level, float, str], Answer]
    priority: Callable[[int, float, str], Answer]
    log_level: Callable[[LogOrder], Answer]
    revoke: Callable[[str], Answer]


@dataclass(frozen=True, slots=True)
class Admin:
    """Who may give orders, to whom, and where that is written down."""

    token: str
    desk: Desk
    log_dir: Path
    instance: str
    observe: Observe

    def note(self, scope: Scope, action: Action, outcome: Outcome, details: Mapping[str, Any]) -> None:
        """Into the log, the metrics and the audit log; that one being full keeps nobody from pausing a process."""
        self.observe(Administered(action, outcome, details.get("reason")))
        record = {**who(scope), "instance": self.instance, "pid": os.getpid(), "action": f"admin {action}", **details}
        try:
            write_audit(self.log_dir, record | {"result": outcome})
        except ConfigurationError as error:
            logger("ops").error("audit_failed", exc_info=error)


def ops_token(path: Path) -> str:
    """The token in `path`, which is made, mode 0600, when there is none.

    Raises ConfigurationError when it can neither be read nor made, or is too short to keep anybody out.
    """
    try:
        token = path.read_text().strip() if path.exists() else _made(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ConfigurationError(f"OPS_TOKEN_FILE: cannot read or make {path}: {reason}") from error
    if len(token) < TOKEN_SHORTEST:
        raise ConfigurationError(f"OPS_TOKEN_FILE: {path} holds less than {TOKEN_SHORTEST} characters; delete it")
    return token


def _made(path: Path) -> str:
    """Made by whoever comes first: producer and worker may start at once, and a reader never sees half a token."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # 0600 from the start
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(TOKEN_BYTES) + "\n")
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        os.unlink(draft)
    return path.read_text().strip()


def refused(admin: Admin, scope: Scope, code: int, details: Mapping[str, Any]) -> Response:
    """The answer to an order that is not taken; `details` has the reason."""
    admin.note(scope, _action(scope), "refused", details)
    return _refusal(details["reason"], code)


def _refusal(reason: str, code: int) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if code == UNAUTHORIZED else None
    return JSONResponse({"status": "refused", "reasons": [reason]}, code, headers)


class Guard:
    """Lets nothing but reading through unless it comes from an operator: no web page, the right token."""

    def __init__(self, app: ASGIApp, admin: Admin | None, *, loopback: bool) -> None:
        self._app = app
        self._admin = admin
        self._loopback = loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        refusal = self._against(scope) if scope["type"] == "http" and scope["method"] not in READING else None
        if refusal is None:
            await self._app(scope, receive, send)
            return
        reason, code = refusal
        if self._admin:
            answer = await run_in_threadpool(refused, self._admin, scope, code, {"reason": reason})
        else:
            answer = _refusal(reason, code)
        await answer(scope, receive, send)

    def _against(self, scope: Scope) -> tuple[str, int] | None:
        headers = _headers(scope)
        if "origin" in headers or (self._loopback and not _loopback_host(headers.get("host", ""))):
            return "requests from web pages or under a foreign Host are refused", FORBIDDEN
        if self._admin is None:
            return None
        given = headers.get("x-admin-token") or headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self._admin.token.encode()):
            return "the token of OPS_TOKEN_FILE is " + ("wrong" if given else "missing"), UNAUTHORIZED
        return None


def _loopback_host(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _action(scope: Scope) -> Action:
    """Which order a path means."""
    found = str(scope["path"]).removeprefix("/admin/").partition("/")[0]
    return next((action for action, path in ORDERS.items() if path.partition("/")[0] == found), "unknown")


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def who(scope: Scope) -> dict[str, str]:
    """Who gives the order, as far as can be told: the token says that they may, not who they are."""
    named = _headers(scope).get("x-operator", "")[:NAME_LONGEST]
    client = scope.get("client")
    return {
        "user": "".join(each for each in named if each.isprintable()) or UNKNOWN,
        "from": str(client[0]) if client else UNKNOWN,
    }
