"""Runs the HTTP servers of a process, one for the ops port and one for the metrics port, in threads of their own.

What they answer is in `api`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from socket import socket

import uvicorn
from starlette.types import ASGIApp

from email_ingestion.errors import OperationFailed
from email_ingestion.ops.admin import Admin, Guard
from email_ingestion.ops.api import metrics_app, ops_app
from email_ingestion.ops.metrics import Metrics
from email_ingestion.ops.sockets import bind, is_loopback, port_of, url_of
from email_ingestion.ops.status import Status

START_SECONDS = 10.0
CLOSE_SECONDS = 5.0
DATE_SECONDS = 1.0


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
    status: Status, metrics: Metrics, host: str, ops_port: int, metrics_port: int, *, admin: Admin | None = None
) -> Endpoints:
    """Listen on both ports (0 lets the system choose) and answer from daemon threads.

    Raises OperationFailed with the owner of a used port, ConfigurationError when `host` is no address of this machine.
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


def _run(app: ASGIApp, bound: socket, name: str) -> _RunningServer:
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
    return _RunningServer(server, thread, bound)
