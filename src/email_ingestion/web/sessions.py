"""Who uses the pages: sessions, roles, the token in every form, and the trust in a proxy that authenticates.

Sessions live in the memory of the process and end with it: there is nothing to steal from a disk or from Redis, they
need no server, and a logout or a restart ends them for certain, which a signed cookie does not.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from email_ingestion.errors import ConfigurationError
from email_ingestion.ops.admin import MAX_NAME_LENGTH, ops_token
from email_ingestion.ops.audit_log import write_audit
from email_ingestion.ops.log_aggregation import RepeatLimiter
from email_ingestion.ops.logs import logger
from email_ingestion.settings import Settings
from email_ingestion.web.login_links import LoginLinks, Role

COOKIE = "email_ingestion_session"
CSRF_FIELD, CSRF_HEADER = "csrf", "x-csrf-token"
PROXY_SECRET_HEADER = "x-proxy-secret"  # noqa: S105 - a name
FORWARDED_HEADER = "x-forwarded-for"
SESSION_SECONDS = 12 * 3600.0
IDLE_SECONDS = 4 * 3600.0
MAX_SESSIONS = 1000  # the one that was idle longest makes room
FREE_ATTEMPTS = 5  # wrong tokens of one address before it must wait
MAX_WAIT_SECONDS = 60.0
FORGET_SECONDS = 900.0  # after which wrong attempts of an address count no more
MAX_ADDRESSES = 10_000
REFUSAL_SECONDS = 6.0  # between two lines of audit.log about refused logins
SAFE_METHODS = frozenset(["GET", "HEAD", "OPTIONS"])
UNKNOWN = "unknown"


class LoginNeeded(Exception):
    """The request comes from nobody who has entered."""


class RequestRefused(Exception):
    """The request is not allowed; the text says why."""


@dataclass(frozen=True, slots=True)
class WebUser:
    """Who makes a request; `csrf` belongs into every form that changes something, `address` is where it comes from."""

    name: str
    role: Role
    csrf: str = field(repr=False)
    address: str = UNKNOWN
    by_proxy: bool = False  # a proxy vouches for each request: there is no session to end

    @property
    def is_operator(self) -> bool:
        """Whether orders are allowed."""
        return self.role == "operator"

    @property
    def identity(self) -> dict[str, Any]:
        """Who it is, in the words of the audit log."""
        return {"user": self.name, "from": self.address, "via": "web"}

    def audit_record(self, action: str, **details: Any) -> dict[str, Any]:
        """Return the line of the audit log about an order of this person, without its result."""
        return {**self.identity, "pid": os.getpid(), "action": action, **details}


@dataclass(slots=True)
class _Session:
    user: str
    role: Role
    csrf: str
    opened_at: float
    used_at: float


class Sessions:
    """The open sessions, by the hash of what the cookie holds; thread-safe. Times are seconds of `clock`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[bytes, _Session] = {}
        self._lock = threading.Lock()

    def open(self, user: str, role: Role) -> str:
        """Return the cookie of a new session."""
        cookie, now = secrets.token_urlsafe(32), self._clock()
        with self._lock:
            self._open = {key: each for key, each in self._open.items() if self._lasts(each, now)}
            if len(self._open) >= MAX_SESSIONS:
                del self._open[min(self._open, key=lambda key: self._open[key].used_at)]
            self._open[_digest(cookie)] = _Session(user, role, secrets.token_urlsafe(32), now, now)
        return cookie

    def find(self, cookie: str, *, touch: bool = True) -> _Session | None:
        """Return the session of a cookie, unless it has ended; with `touch` it is in use."""
        with self._lock:
            found, now = self._open.get(_digest(cookie)), self._clock()
            if found is None or not self._lasts(found, now):
                return None
            if touch:
                found.used_at = now
            return found

    def close(self, cookie: str) -> None:
        """End a session."""
        with self._lock:
            self._open.pop(_digest(cookie), None)

    @staticmethod
    def _lasts(session: _Session, now: float) -> bool:
        return now - session.opened_at < SESSION_SECONDS and now - session.used_at < IDLE_SECONDS


class AttemptLimiter:
    """Slows down who guesses: after some wrong attempts an address waits, twice as long after each further one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: dict[str, tuple[int, float]] = {}  # address: how often, and when it was last
        self._lock = threading.Lock()

    def wait_seconds(self, address: str) -> float:
        """Return how long this address has to wait before its next attempt is looked at."""
        with self._lock:
            count, last = self._failed.get(address, (0, 0.0))
            if count < FREE_ATTEMPTS:
                return 0.0
            wait = min(2.0 ** min(count - FREE_ATTEMPTS, 10), MAX_WAIT_SECONDS)
            return max(0.0, last + wait - self._clock())

    def failed(self, address: str) -> None:
        """Count a wrong attempt."""
        with self._lock:
            now = self._clock()
            if len(self._failed) >= MAX_ADDRESSES or address not in self._failed:
                self._failed = {key: each for key, each in self._failed.items() if now - each[1] < FORGET_SECONDS}
            if len(self._failed) >= MAX_ADDRESSES:
                del self._failed[next(iter(self._failed))]
            self._failed[address] = (self._failed.get(address, (0, 0.0))[0] + 1, now)

    def succeeded(self, address: str) -> None:
        """Forget the wrong attempts of an address."""
        with self._lock:
            self._failed.pop(address, None)


class WebEntry:
    """All that decides who comes in; one for the process, in `app.state.entry`."""

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigurationError when the token of OPS_TOKEN_FILE can neither be read nor made."""
        self.settings = settings
        self.token = ops_token(settings.ops_token_file)
        self.sessions = Sessions()
        self.links = LoginLinks(self.token)
        self.attempts = AttemptLimiter()
        self._refusals = RepeatLimiter(REFUSAL_SECONDS, time.monotonic)
        self._csrf_key = secrets.token_bytes(32)  # of users whom a proxy names

    def user_of(self, request: Request, *, touch: bool = True) -> WebUser | None:
        """Return who makes a request: whom the trusted proxy names, or whose session the cookie is; else None."""
        address = address_of(request)
        if name := self._name_by_proxy(request):
            role: Role = "operator" if name in self.settings.web_proxy_operators else "reader"
            csrf = hmac.new(self._csrf_key, name.encode(), hashlib.sha256).hexdigest()
            return WebUser(name, role, csrf, address, by_proxy=True)
        cookie = request.cookies.get(COOKIE, "")
        session = self.sessions.find(cookie, touch=touch) if cookie else None
        return WebUser(session.user, session.role, session.csrf, address) if session else None

    def comes_by_proxy(self, request: Request) -> bool:
        """Return whether the trusted proxy sends a request: what its headers say of the user then holds."""
        secret = self.settings.web_proxy_secret
        given = request.headers.get(PROXY_SECRET_HEADER, "")
        return bool(secret) and hmac.compare_digest(given.encode(), (secret or "").encode())

    def _name_by_proxy(self, request: Request) -> str:
        if not self.comes_by_proxy(request):
            return ""
        return clean_name(request.headers.get(self.settings.web_proxy_user_header, ""))

    def is_secure(self, request: Request) -> bool:
        """Return whether the browser comes by HTTPS, to us or to the proxy before us."""
        return request.url.scheme == "https" or (self.settings.web_public_url or "").startswith("https:")

    def record(self, user: str, address: str, action: str, result: str = "done", **details: object) -> None:
        """Write what somebody did into the audit log; one on a full disk must not prevent it."""
        limited = self._refusals.allow((action, result)) if result == "refused" else 0
        if limited is None:
            return
        left_out = {"left_out": limited} if limited else {}
        record = {"user": user, "from": address, "via": "web", "action": action, **details, **left_out}
        try:
            write_audit(self.settings.log_dir, record | {"result": result})
        except ConfigurationError as error:
            logger("web").error("audit_failed", exc_info=error)


async def current_user(request: Request) -> WebUser:
    """Return who makes the request; a dependency of every page.

    Raises LoginNeeded, and RequestRefused for a change that does not come from one of our own forms.
    """
    entry: WebEntry = request.app.state.entry
    user = entry.user_of(request)
    if user is None:
        raise LoginNeeded
    if request.method not in SAFE_METHODS:
        refuse_foreign_origin(request)
        given = request.headers.get(CSRF_HEADER) or (await request.form()).get(CSRF_FIELD)
        if not isinstance(given, str) or not hmac.compare_digest(given.encode(), user.csrf.encode()):
            await _record_refusal(request, user, "the form is not from this session")
            raise RequestRefused("this form is not from your session: load the page again")
    return user


async def current_operator(request: Request, user: Annotated[WebUser, Depends(current_user)]) -> WebUser:
    """Return who makes the request, if that is an operator. Raises RequestRefused otherwise."""
    if not user.is_operator:
        await _record_refusal(request, user, "readers give no orders")
        raise RequestRefused("your role is reader: an operator can do this")
    return user


CurrentUser = Annotated[WebUser, Depends(current_user)]
CurrentOperator = Annotated[WebUser, Depends(current_operator)]


async def _record_refusal(request: Request, user: WebUser, reason: str) -> None:
    entry: WebEntry = request.app.state.entry
    action = f"web {request.url.path}"
    await run_in_threadpool(entry.record, user.name, user.address, action, "refused", reason=reason)


def refuse_foreign_origin(request: Request) -> None:
    """Raise RequestRefused for a form that a browser sends for another site; programs send no such headers."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site not in {None, "same-origin", "none"}:
        raise RequestRefused("requests from other sites are refused")
    if site is None and origin is not None:
        public: str | None = request.app.state.entry.settings.web_public_url
        ours = {request.headers.get("host"), urlsplit(public).netloc if public else None}
        if urlsplit(origin).netloc not in ours:
            raise RequestRefused("requests from other sites are refused")


def address_of(request: Request) -> str:
    """Return the address that a request comes from: by the trusted proxy, the last one that it names."""
    entry: WebEntry = request.app.state.entry
    named = request.headers.getlist(FORWARDED_HEADER)
    if named and entry.comes_by_proxy(request):
        last = named[-1].rpartition(",")[2].strip()
        with suppress(ValueError):
            return str(ipaddress.ip_address(last))
    return request.client.host if request.client else UNKNOWN


def clean_name(name: str) -> str:
    """Return a name as the audit log may have it."""
    return "".join(each for each in name.strip()[:MAX_NAME_LENGTH] if each.isprintable())


def _digest(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode()).digest()
