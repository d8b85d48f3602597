"""The application of the web process: its routers, behind a guard for Host, size of the body, and security headers.

A page of the Internet that rebinds its own name to this machine still sends that name as Host, and is refused. No
answer may be read by another site, framed by it or kept by a cache; a page that needs more sets the header itself.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, Response
from starlette.datastructures import MutableHeaders
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from email_ingestion import __version__
from email_ingestion.ops.admin import request_headers
from email_ingestion.ops.request_guard import CLOSE, AllowedHosts, malformation, with_json_body
from email_ingestion.settings import Settings
from email_ingestion.web.api import changes, emails, order_requests, state
from email_ingestion.web.api_errors import add_error_answers, error_answer
from email_ingestion.web.context import WebContext
from email_ingestion.web.pages.routes import add_pages

MAX_BODY_BYTES = 64 * 1024
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self';"
    " frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'self'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cache-Control": "no-store",
}
DESCRIPTION = (
    "Delivered mail, the state of the system, and orders. Every path below /api needs a bearer token of"
    ' `email-ingestion tokens create`, orders one of the scope operate. Errors are `{"error": {"code", "message"}}`.'
)


def web_app(settings: Settings, context: WebContext) -> ASGIApp:
    """Make the application that answers everything on the port of the web process."""
    app = FastAPI(
        title="email-ingestion",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # to an address that a proxy may have changed; what is not there is not there
    )
    app.state.context = context
    add_error_answers(app)
    for router in (emails.router, state.router, changes.router, order_requests.router):
        app.include_router(router)
    add_pages(app, settings)
    app.add_api_route("/healthz", _healthy, methods=["GET", "HEAD"], include_in_schema=False)
    public = urlsplit(settings.web_public_url).hostname if settings.web_public_url else None
    names = (*settings.web_allowed_hosts, *filter(None, (public,)))
    return WebGuard(app, AllowedHosts.of_machine(settings.web_host, names))


async def _healthy() -> Response:
    """Say that the process answers; nothing else is asked."""
    return PlainTextResponse("alive\n")


class WebGuard:
    """Refuses requests that are malformed, under a foreign Host or with a body over MAX_BODY_BYTES; sets HEADERS.

    The body of an order to the API is JSON whatever its Content-Type says, so that `curl -d '{…}'` works.
    """

    def __init__(self, app: ASGIApp, hosts: AllowedHosts) -> None:
        self._app = RequestBodyLimitMiddleware(app, MAX_BODY_BYTES)
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if problem := malformation(scope):
            await error_answer(scope["path"], problem[1], problem[0], CLOSE)(scope, receive, send_guarded)
            return
        if self._hosts.allow(request_headers(scope).get("host")):
            orders = scope["method"] == "POST" and scope["path"].startswith("/api/")
            await self._app(with_json_body(scope) if orders else scope, receive, send_guarded)
            return
        reason = "this Host is refused: WEB_ALLOWED_HOSTS names the hosts that are answered"
        await error_answer(scope["path"], 421, reason)(scope, receive, send_guarded)
