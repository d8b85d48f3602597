"""Runs the HTTP servers of a process, one for the ops port and one for the metrics port, in threads of their own.

What they answer is in `api`, whom in `request_guard`. Both servers keep few connections, so that callers who hold
theirs (half a request, or an answer they do not read) neither take the descriptors of the loops nor keep probes out.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from socket import socket
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from email_ingestion.background import start_thread
from email_ingestion.errors import OperationFailed, ThreadUnavailable
from email_ingestion.ops.admin import Admin
from email_ingestion.ops.api import metrics_app, ops_app
from email_ingestion.ops.metrics import Metrics
from email_ingestion.ops.request_guard import MAX_HEADER_BYTES, AllowedHosts, RequestGuard
from email_ingestion.ops.sockets import BACKLOG, bind, port_of, url_of
from email_ingestion.ops.status import Status

START_SECONDS = 10.0
CLOSE_SECONDS = 5.0
DATE_SECONDS = 1.0
MAX_CONNECTIONS = 64  # of one port; many more than probes, scrapers and operators need
ACCEPT_BACKLOG = 32  # connections that asyncio accepts in one turn, before the first of them is counted
REQUEST_SECONDS = 10.0  # a request must be complete this long after the connection or the answer before
ANSWER_SECONDS = 120.0  # an order may wait for a dependency; an answer that nobody reads may not wait for ever


class _LimitedConnection:
    """A connection whose server closes it when it is held; at the limit the one that waited longest makes room."""

    connections: set[Any]  # all of its port
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    waiting_since: float

    @property
    def awaits_request(self) -> bool:
        """Whether no complete request has come that is still to be answered."""
        return True

    def take_place(self) -> None:
        """Begin to wait, in the place of another connection where there are too many."""
        self.waiting_since = self.loop.time()
        if len(self.connections) > MAX_CONNECTIONS:
            others = [each for each in self.connections if each is not self and isinstance(each, _LimitedConnection)]
            min(others, key=lambda each: (not each.awaits_request, each.waiting_since)).drop()

    def drop_if_held(self) -> None:
        """Close the connection if its request, or the reading of the answer, takes too long."""
        if self.loop.time() - self.waiting_since > (REQUEST_SECONDS if self.awaits_request else ANSWER_SECONDS):
            self.drop()

    def drop(self) -> None:
        """Close the connection without waiting for the other side."""
        self.connections.discard(self)  # a second one must not be dropped for the same place
        self.transport.abort()


class _Connection(_LimitedConnection, H11Protocol):
    """A connection that carries requests; with TLS, after its `handshake`."""

    handshake: _Handshake | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        if self.handshake:
            self.connections.discard(self.handshake)
        self.waiting_since = self.loop.time()
        super().connection_made(transport)
        self.take_place()

    def on_response_complete(self) -> None:
        self.waiting_since = self.loop.time()
        super().on_response_complete()

    @property
    def awaits_request(self) -> bool:
        cycle = self.cycle
        return cycle is None or cycle.response_complete or cycle.more_body


class _Handshake(_LimitedConnection, SSLProtocol):
    """TLS of one connection. asyncio's own server knows it only after the handshake, which need never come."""

    def __init__(self, context: ssl.SSLContext, connection: _Connection) -> None:
        self.loop, self.connections = connection.loop, connection.connections
        connection.handshake = self
        nobody_waits: Any = None
        super().__init__(self.loop, connection, context, nobody_waits, server_side=True, ssl_handshake_timeout=10)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as asyncio's
        self.transport = transport
        self.connections.add(self)
        self.take_place()
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.connections.discard(self)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close it, for the server ends; as uvicorn calls it."""
        self.drop()


def _protocol(tls: ssl.SSLContext | None) -> Any:
    """Return what makes the protocol of a new connection, as uvicorn calls it."""
    return (lambda **facts: _Handshake(tls, _Connection(**facts))) if tls else _Connection


class _Server(uvicorn.Server):
    """Stops on request, where uvicorn polls ten times a second, and does not wait when nobody is connected."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stop_requested = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def request_stop(self) -> None:
        """Stop serving; from any thread."""
        self.should_exit = True
        if self._loop:
            with suppress(RuntimeError):  # it has ended already
                self._loop.call_soon_threadsafe(self._stop_requested.set)

    async def startup(self, sockets: list[socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # which sets the date of the answers
            for connection in list(self.server_state.connections):
                if isinstance(connection, _LimitedConnection):
                    connection.drop_if_held()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop_requested.wait(), DATE_SECONDS)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        if self.server_state.connections:
            await super().shutdown(sockets)
            return
        for listening in (*self.servers, *(sockets or ())):
            listening.close()


@dataclass(frozen=True, slots=True)
class _RunningServer:
    server: _Server
    thread: threading.Thread
    socket: socket

    def wait_closed(self) -> None:
        self.thread.join(CLOSE_SECONDS)
        self.socket.close()


class WebEndpoint:
    """One running server and its URL; `close` stops it."""

    def __init__(self, url: str, served: _RunningServer) -> None:
        self.url = url
        self._served = served

    def close(self) -> None:
        """Stop listening; answers in progress get a second to finish."""
        self._served.server.request_stop()
        self._served.wait_closed()


class Endpoints:
    """The two running servers, their ports and URLs; `close` stops them."""

    def __init__(self, host: str, ops: _RunningServer, metrics: _RunningServer) -> None:
        self._served = (ops, metrics)
        self.ops_port = port_of(ops.socket)
        self.metrics_port = port_of(metrics.socket)
        self.ops_url = url_of(host, self.ops_port)
        self.metrics_url = url_of(host, self.metrics_port)

    def close(self) -> None:
        """Stop listening; answers in progress get a second to finish."""
        for served in self._served:
            served.server.request_stop()
        for served in self._served:
            served.wait_closed()


def serve(
    status: Status,
    metrics: Metrics,
    host: str,
    ops_port: int,
    metrics_port: int,
    *,
    admin: Admin | None = None,
    hosts: AllowedHosts | None = None,
    read_token: str | None = None,
    on_error: Callable[[Exception], None] = lambda _: None,
) -> Endpoints:
    """Listen on both ports (0 lets the system choose) and answer from daemon threads.

    `hosts` are the names to answer under (those of this machine by default); with `read_token` all but the probes'
    paths need it; `on_error` gets the reason why no thread can be started yet. Raises OperationFailed with the owner of
    a used port, ConfigurationError when `host` is no address of this machine, ThreadUnavailable when the process ends
    before there was a thread.
    """
    ops_socket = bind(host, ops_port, "OPS_PORT")
    try:
        metrics_socket = bind(host, metrics_port, "METRICS_PORT")
    except Exception:
        ops_socket.close()
        raise
    hosts = hosts or AllowedHosts.of_machine(host)
    ops = RequestGuard(ops_app(status, metrics, admin), hosts, admin=admin, read_token=read_token)
    exposition = RequestGuard(metrics_app(metrics), hosts, read_token=read_token)
    run = partial(_run, tls=None, on_error=on_error)
    return Endpoints(host, run(ops, ops_socket, "ops-http"), run(exposition, metrics_socket, "metrics-http"))


def serve_app(
    app: ASGIApp,
    host: str,
    port: int,
    setting: str,
    name: str,
    *,
    tls: ssl.SSLContext | None = None,
    on_error: Callable[[Exception], None] = lambda _: None,
) -> WebEndpoint:
    """Serve any application on a port of its own, from a daemon thread, with `tls` where that is given.

    Raises as `serve` does.
    """
    bound = bind(host, port, setting)
    url = url_of(host, port_of(bound))
    return WebEndpoint(url.replace("http:", "https:", 1) if tls else url, _run(app, bound, name, tls, on_error))


def _run(
    app: ASGIApp, bound: socket, name: str, tls: ssl.SSLContext | None, on_error: Callable[[Exception], None]
) -> _RunningServer:
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=_protocol(tls),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # else whoever comes by loopback names the address that the audit log has
        timeout_graceful_shutdown=1,
        backlog=ACCEPT_BACKLOG,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )
    server = _Server(config)  # off the main thread it leaves the signals alone
    make = partial(threading.Thread, target=server.run, kwargs={"sockets": [bound]}, name=name, daemon=True)
    thread = start_thread(make, on_error, lambda: False)
    if thread.ident is None:
        bound.close()
        raise ThreadUnavailable(f"there was no thread for {name} before the process was to end")
    deadline = time.monotonic() + START_SECONDS
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise OperationFailed(f"the HTTP server {name} did not start; the log says why")
        time.sleep(0.005)
    bound.listen(BACKLOG)  # which asyncio has set to ACCEPT_BACKLOG: in a longer queue fewer callers are turned away
    return _RunningServer(server, thread, bound)
