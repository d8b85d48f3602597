"""ASGI middleware in front of both ports: under which names they answer, who may read and who may give orders.

A web page that rebinds its own name to an address of this machine still sends that name as Host (DNS rebinding), and
any page's POST carries an Origin. Rebinding needs a name with a dot that somebody else owns: IP literals and
single-label names are safe, and are how probes, scrapers and containers ask.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from fastapi.concurrency import run_in_threadpool
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from email_ingestion.ops.admin import BAD_REQUEST, FORBIDDEN, UNAUTHORIZED, Admin, refusal, request_headers

READ_METHODS = ("GET", "HEAD")
PROBE_PATHS = frozenset(["/health", "/livez", "/ready", "/readyz"])  # never need a token
# A name or an address, and a port (RFC 9112, section 3.2): no user, path, list or letter beyond ASCII.
HOST = re.compile(
    r"(\[[0-9a-f:.]+(?:%[\w.~-]+)?\]|[\w~-]+(?:\.[\w~-]+)*\.?)(?::([0-9]{0,5}))?", re.ASCII | re.IGNORECASE
)
LAST_PORT = 65_535
MAX_BODY_BYTES = 64 * 1024
MAX_HEADER_BYTES = 16 * 1024
FIELD_BYTES = 4  # of a header field: a colon, a blank, the end of the line
HEAD_TOO_LARGE = 431
CLOSE = {"Connection": "close"}  # what follows on that connection may be anything


@dataclass(frozen=True, slots=True)
class AllowedHosts:
    """The names in a Host header that are answered, next to those that are always safe.

    `names` are host names; `*.example.com` stands for every name below example.com, and `*` for every name.
    """

    names: frozenset[str]

    @classmethod
    def of_machine(cls, ops_host: str, configured: Collection[str] = ()) -> AllowedHosts:
        """Allow OPS_HOST, this machine's own name and the names of OPS_ALLOWED_HOSTS."""
        names = (ops_host, socket.gethostname(), *configured)
        return cls(frozenset(name.strip().rstrip(".").casefold() for name in names if name.strip()))

    def allow(self, host: str | None) -> bool:
        """Return whether a request with this Host header is answered; None is a request without one."""
        if not host:
            return True
        if (found := HOST.fullmatch(host)) is None:
            return False
        name = found[1].strip("[]").rstrip(".").casefold()
        if found[1].startswith("["):
            return _is_address(name)
        return "." not in name or _is_address(name) or name.endswith(".localhost") or self._is_named(name)

    def _is_named(self, name: str) -> bool:
        parents = (f"*.{name[index + 1 :]}" for index, letter in enumerate(name) if letter == ".")
        return name in self.names or "*" in self.names or any(parent in self.names for parent in parents)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class RequestGuard:
    """Refuses requests under a foreign Host, readers without the read token, and orders without the admin token.

    It presents the body of an order as JSON whatever its Content-Type says, so that `curl -d '{…}'` works. A body over
    MAX_BODY_BYTES is refused unread.
    """

    def __init__(
        self, app: ASGIApp, hosts: AllowedHosts, *, admin: Admin | None = None, read_token: str | None = None
    ) -> None:
        self._app = RequestBodyLimitMiddleware(app, MAX_BODY_BYTES)
        self._hosts = hosts
        self._admin = admin
        self._read_token = read_token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if problem := malformation(scope):
            answer = refusal(*problem)
            answer.headers.update(CLOSE)
            await answer(scope, receive, send)
            return
        scope = without_last_slash(scope)
        reads = scope["method"] in READ_METHODS
        reason, code = self._objection(scope, reads=reads) or (None, 0)
        if reason is None:
            await self._app(scope if reads else with_json_body(scope), receive, send)
        elif self._admin and not reads:
            answer = await run_in_threadpool(self._admin.refuse, scope, code, {"reason": reason})
            await answer(scope, receive, send)
        else:
            await refusal(reason, code)(scope, receive, send)

    def _objection(self, scope: Scope, *, reads: bool) -> tuple[str, int] | None:
        headers = request_headers(scope)
        if not self._hosts.allow(headers.get("host")):
            return "this Host is refused: OPS_ALLOWED_HOSTS names the hosts that are answered", FORBIDDEN
        if not reads and "origin" in headers:
            return "requests from web pages are refused", FORBIDDEN
        token = headers.get("x-admin-token") or headers.get("authorization", "").removeprefix("Bearer ")
        if not reads:
            allowed, setting = ([self._admin.token] if self._admin else []), "OPS_TOKEN_FILE"
        else:
            protected = self._read_token is not None and scope["path"] not in PROBE_PATHS
            allowed = [each for each in (self._read_token, self._admin and self._admin.token) if each and protected]
            setting = "OPS_READ_TOKEN_FILE"
        if allowed and not any(hmac.compare_digest(token.encode(), each.encode()) for each in allowed):
            return f"the token of {setting} is " + ("wrong" if token else "missing"), UNAUTHORIZED
        return None


def malformation(scope: Scope) -> tuple[str, int] | None:
    """Return why nobody can say what a request means, and the status of that answer; CLOSE belongs to it.

    A body with two lengths, or chunked before HTTP/1.1, ends elsewhere for a proxy than for us (request smuggling,
    RFC 9112, section 6.1). The head is measured here, for h11 measures what has not come whole.
    """
    names = [name for name, _ in scope["headers"]]
    if b"transfer-encoding" in names and (b"content-length" in names or scope["http_version"] < "1.1"):
        return "the body has two lengths", BAD_REQUEST
    path, query = scope.get("raw_path") or b"", scope["query_string"]
    fields = sum(len(name) + len(value) + FIELD_BYTES for name, value in scope["headers"])
    if len(path) + len(query) + fields > MAX_HEADER_BYTES:
        return f"the head of a request has {MAX_HEADER_BYTES // 1024} KiB at most", HEAD_TOO_LARGE
    hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    if len(hosts) > 1 or not all(map(_is_host, hosts)):
        return "the Host is not the name or address of one host, and a port", BAD_REQUEST
    try:
        plain = unquote_to_bytes(path + b"?" + query).decode()
    except UnicodeDecodeError:
        return "the address is not UTF-8", BAD_REQUEST
    return ("the address has a NUL character", BAD_REQUEST) if "\0" in plain else None


def _is_host(header: str) -> bool:
    found = HOST.fullmatch(header)
    return not header or (found is not None and int(found[2] or 0) <= LAST_PORT)


def without_last_slash(scope: Scope) -> Scope:
    """Return a request whose path has no slash at its end: a redirection is no answer to a probe, and looks well."""
    path = scope["path"]
    return {**scope, "path": path[:-1]} if len(path) > 1 and path.endswith("/") else scope


def with_json_body(scope: Scope) -> Scope:
    """Return a request whose body is JSON whatever its Content-Type says."""
    headers = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
    return {**scope, "headers": [*headers, (b"content-type", b"application/json")]}
