"""The HTTP side of the sandbox: starlette applications on uvicorn's protocol, in the sandbox's own event loop.

Endpoints must be coroutines: starlette runs plain functions in threads, and the account belongs to one thread.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias
from urllib.parse import parse_qs

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.server import ServerState

HOST = "127.0.0.1"
_BODY_LIMIT = 64 * 1024 * 1024
_READ_SECONDS = 30.0

ErrorHandler: TypeAlias = Callable[[Request, Any], Awaitable[Response]]


class BadRequest(ValueError):
    """The request cannot be understood. `args[0]` is a sentence."""


class JsonAnswer(JSONResponse):
    """A JSON answer that a terminal shows well: readable text, and a line end."""

    def render(self, content: object) -> bytes:
        """Return the body."""
        return json.dumps(content, ensure_ascii=False).encode() + b"\n"


def error_answer(status: int, sentence: str) -> Response:
    """Return a JSON answer with one sentence about the error."""
    return JsonAnswer({"error": sentence}, status)


async def read_body(request: Request) -> bytes:
    """Return the body; raise BadRequest when it is too large and TimeoutError when it does not come."""
    if int(request.headers.get("content-length", "0")) > _BODY_LIMIT:
        raise BadRequest(f"the body may have {_BODY_LIMIT} bytes at most")
    async with asyncio.timeout(_READ_SECONDS):
        return await request.body()


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form-encoded body; the first value counts where a name comes twice."""
    body = (await read_body(request)).decode("utf-8", "replace")
    return {name: values[0] for name, values in parse_qs(body, keep_blank_values=True).items()}


async def read_json(request: Request) -> dict[str, object]:
    """Return the JSON object in the body, whatever Content-Type says; raise BadRequest when there is none."""
    try:
        value = json.loads(await read_body(request) or b"{}")
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object")
    return value


def create_app(routes: Sequence[Route], errors: Mapping[int | type[Exception], ErrorHandler]) -> Starlette:
    """Return an application that answers every error in JSON, and only under a name of this machine.

    Args:
        routes: The endpoints.
        errors: Answers to exceptions and to the statuses 404 and 405, in addition to the common ones.
    """
    common: dict[int | type[Exception], ErrorHandler] = {
        BadRequest: _answer_bad_request,
        TimeoutError: _answer_timeout,
        ClientDisconnect: _answer_nobody,
    }
    # Another name can only lead here by DNS rebinding: a web page must not drive the sandbox.
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False)
    return Starlette(routes=routes, middleware=[hosts], exception_handlers={**common, **errors})


async def _answer_bad_request(_request: Request, error: BadRequest) -> Response:
    return error_answer(400, str(error))


async def _answer_timeout(_request: Request, _error: TimeoutError) -> Response:
    return error_answer(408, "the request did not arrive in time")


async def _answer_nobody(_request: Request, _error: ClientDisconnect) -> Response:
    return Response()


class HttpServer:
    """One application on a loopback port.

    uvicorn.Server would take over the signal handlers and sleep 0.1 s at each stop, and tests stop the sandbox hundreds
    of times; its protocol alone does neither.
    """

    def __init__(self, app: Starlette) -> None:
        """Prepare to serve `app`; one request per connection, so that no idle client is left at the end."""
        headers = [("Connection", "close"), ("Cache-Control", "no-store")]
        self._config = uvicorn.Config(
            app, http="h11", ws="none", lifespan="off", log_config=None, access_log=False, headers=headers
        )
        self._state = ServerState()
        self._listener: asyncio.Server | None = None

    async def start(self, port: int) -> int:
        """Listen on loopback and return the port; raise OSError when it is taken."""
        self._config.load()
        self._state.default_headers = self._config.encoded_headers
        self._listener = await asyncio.get_running_loop().create_server(self._create_protocol, HOST, port)
        return int(self._listener.sockets[0].getsockname()[1])

    def _create_protocol(self) -> asyncio.Protocol:
        protocol: asyncio.Protocol = self._config.http_protocol_class(  # type: ignore[call-arg]
            config=self._config, server_state=self._state, app_state={}
        )
        return protocol

    def stop(self) -> None:
        """Close the port and all connections, also one whose request waits for its answer."""
        if self._listener is not None:
            self._listener.close()
        for connection in tuple(self._state.connections):
            connection.transport.abort()
        for task in tuple(self._state.tasks):
            task.cancel()
