"""The HTTP endpoints of a process: what they answer comes from the status board and the registry, nothing is asked.

The ops port serves health, readiness, status, metrics and `admin`'s orders; the metrics port metrics alone. Where they
listen is `listen`'s business.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from socket import socket

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from email_ingestion.errors import OperationFailed
from email_ingestion.ops.admin import ORDERS, READING, Admin, Guard
from email_ingestion.ops.metrics import Metrics
from email_ingestion.ops.sockets import bind, is_loopback, port_of, url_of
from email_ingestion.ops.status import Status

EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"
START_SECONDS = 10.0
CLOSE_SECONDS = 5.0
DATE_SECONDS = 1.0


def ops_app(status: Status, metrics: Metrics, admin: Admin | None = None) -> Starlette:
    """Everything an operator or an orchestrator asks for, and with `admin` what operators order."""

    def health() -> Response:
        alive, body = status.health()
        return JSONResponse(body, 200 if alive else 503)

    def ready() -> Response:
        ok, body = status.ready()
        return JSONResponse(body, 200 if ok else 503)

    def report() -> Response:
        return JSONResponse(status.report())

    answers = {"/health": health, "/livez": health, "/ready": ready, "/readyz": ready, "/status": report}
    routes = [_reading(path, answer) for path, answer in answers.items()]
    if admin:
        orders = _Orders(admin)
        routes += [Route(f"/admin/{path}", orders) for path in ORDERS.values()]
    return metrics_app(metrics, routes)


def metrics_app(metrics: Metrics, more: Sequence[Route] = ()) -> Starlette:
    """`/metrics`, and a signpost at `/`."""

    def exposition() -> Response:
        return Response(metrics.render(), media_type=EXPOSITION)

    def signpost() -> Response:
        return PlainTextResponse("\n".join(route.path for route in routes) + "\n")

    routes = [_reading("/", signpost), _reading("/metrics", exposition), *more]
    return Starlette(routes=routes)


def _reading(path: str, answer: Callable[[], Response]) -> Route:
    async def endpoint(request: Request) -> Response:
        del request
        return answer()

    return Route(path, endpoint, methods=READING)


class _Orders:
    """The application of `orders`, loaded when it is first asked."""

    def __init__(self, admin: Admin) -> None:
        self._admin = admin
        self._app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is None:
            self._app = await run_in_threadpool(self._load)
        await self._app(scope, receive, send)

    def _load(self) -> ASGIApp:
        """Beside the event loop, which answers whoever asks meanwhile."""
        from email_ingestion.ops.orders import orders_app  # noqa: PLC0415 - FastAPI: 0.25 s, 4 MB

        return orders_app(self._admin)


class _Server(uvicorn.Server):
    """Is told to end, where uvicorn looks ten times a second, and has no patience when nobody is connected."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._told = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def end(self) -> None:
        """From any thread."""
        self.should_exit = True
        if self._loop:
            with suppress(RuntimeError):  # it ended by itself
                self._loop.call_soon_threadsafe(self._told.set)

    async def startup(self, sockets: list[socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # which sets the date of the answers
            with suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), DATE_SECONDS)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        if self.server_state.connections:
            await super().shutdown(sockets)
            return
        for listening in (*self.servers, *(sockets or ())):
            listening.close()


@dataclass(frozen=True, slots=True)
class _Served:
    server: _Server
    thread: threading.Thread
    socket: socket

    def finish(self) -> None:
        self.thread.join(CLOSE_SECONDS)
        self.socket.close()


class Endpoints:
    """Two running servers; `close` stops them."""

    def __init__(self, host: str, ops: _Served, metrics: _Served) -> None:
        self._served = (ops, metrics)
        self.ops_port = port_of(ops.socket)
        self.metrics_port = port_of(metrics.socket)
        self.ops_url = url_of(host, self.ops_port)
        self.metrics_url = url_of(host, self.metrics_port)

    def close(self) -> None:
        """Stop listening; answers under way get a second to finish."""
        for served in self._served:
            served.server.end()
        for served in self._served:
            served.finish()


def serve(
    status: Status, metrics: Metrics, host: str, ops_port: int, metrics_port: int, *, admin: Admin | None = None
) -> Endpoints:
    """Listen on both ports (0 lets the system choose) and answer from daemon threads.

    Raises OperationFailed naming who has a port, ConfigurationError when `host` is no address of this machine.
    """
    ops_socket = bind(host, ops_port, "OPS_PORT")
    try:
        metrics_socket = bind(host, metrics_port, "METRICS_PORT")
    except Exception:
        ops_socket.close()
        raise
    ops = Guard(ops_app(status, metrics, admin), admin, loopback=is_loopback(ops_socket))
    return Endpoints(
        host, _run(ops, ops_socket, "ops-http"), _run(metrics_app(metrics), metrics_socket, "metrics-http")
    )


def _run(app: ASGIApp, bound: socket, name: str) -> _Served:
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    server = _Server(config)  # off the main thread it leaves the signals alone
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, name=name, daemon=True)
    thread.start()
    deadline = time.monotonic() + START_SECONDS
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise OperationFailed(f"the HTTP server {name} did not start; the log says why")
        time.sleep(0.005)
    return _Served(server, thread, bound)
