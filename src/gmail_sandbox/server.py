"""The whole sandbox: three loopback ports over one account. `Sandbox` lives in an event loop."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gmail_sandbox import imap, mail_source
from gmail_sandbox.backend import Backend, Credentials
from gmail_sandbox.connection import LINE_LIMIT
from gmail_sandbox.control_api import ControlApi
from gmail_sandbox.fault_actions import FaultActions
from gmail_sandbox.http_server import HOST, HttpServer
from gmail_sandbox.oauth import OAuthEndpoints
from gmail_sandbox.session import SessionRegistry
from gmail_sandbox.state import State
from gmail_sandbox.tokens import MAIL_SCOPE

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.applications import Starlette

_STOP_SECONDS = 2.0
_SETTLE_SECONDS = 0.01


class PortTaken(OSError):
    """Another process listens on a port that was asked for."""


@dataclass(frozen=True)
class SandboxSettings:
    """How to run a sandbox.

    Attributes:
        imap_port: The port of IMAP; 0 lets the system choose, as for the other two.
        oauth_port: The port of the OAuth endpoints.
        control_port: The port of the control API.
        mail: The first mail: a number of invented messages, `bulk:N`, a folder of .eml files or an mbox file; or none.
        seed: The seed of the invented mail.
        state: The file that keeps mail and tokens over a restart; they are in memory without one.
        credentials: The account, the OAuth client and the lives of tokens.
        tls_certificate: Speak TLS on the IMAP port with this certificate, in PEM format.
        tls_key: Its key, when that is in a file of its own.
    """

    imap_port: int = 0
    oauth_port: int = 0
    control_port: int = 0
    mail: str = ""
    seed: int = 1
    state: Path | None = None
    credentials: Credentials = field(default_factory=Credentials)
    tls_certificate: Path | None = None
    tls_key: Path | None = None


class Sandbox:
    """Start it, use the ports, stop it; a second start with the same state file continues where it was."""

    def __init__(self, settings: SandboxSettings) -> None:
        """Open the state and load the first mail if it is new."""
        self.settings = settings
        self._state = State(settings.state)
        try:
            self.backend = Backend(self._state, settings.credentials)
            mail_source.load_once(self.backend.account, self._state, settings.mail, settings.seed)
        except BaseException:
            self._state.close()
            raise
        self.sessions = SessionRegistry()
        self.fault_actions = FaultActions(self.backend, self.sessions, self._open_imap, self._close_imap)
        self.imap_port = self.oauth_port = self.control_port = 0
        self._imap: asyncio.Server | None = None
        self._http: list[HttpServer] = []
        self._opening: asyncio.Task[None] | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen on the three ports; raise PortTaken when one is not free."""
        try:
            self.imap_port = await self._listen_imap(self.settings.imap_port)
            self.oauth_port = await self._listen_http(
                OAuthEndpoints(self.backend).create_app(), self.settings.oauth_port
            )
            self.control_port = await self._listen_http(
                ControlApi(self.backend, self.sessions).create_app(), self.settings.control_port
            )
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End every session with BYE, and close the ports and the state."""
        if self._opening is not None:
            await asyncio.gather(self._opening, return_exceptions=True)
        # A connection accepted this very moment needs some turns of the loop to reach its handler, which closes it;
        # asyncio drops its socket unclosed when the server goes first.
        await asyncio.sleep(_SETTLE_SECONDS)
        for server in self._http:
            server.stop()
        if self._imap is not None:
            self._imap.close()
        self.sessions.end_all("Server shutting down")
        if self._connections:
            await asyncio.wait(self._connections, timeout=_STOP_SECONDS)
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        self._state.close()

    def authorized_user_info(self) -> dict[str, object]:
        """Return a token in google-auth's "authorized user" format, as if the owner had consented just now."""
        tokens, credentials = self.backend.tokens, self.settings.credentials
        refresh = tokens.issue_refresh(MAIL_SCOPE, credentials.client_id)
        token, grant = tokens.issue_access(MAIL_SCOPE, refresh)
        return {
            "token": token,
            "refresh_token": refresh,
            "token_uri": f"http://{HOST}:{self.oauth_port}/token",
            "client_id": credentials.client_id,
            "client_secret": credentials.client_secret,
            "scopes": [MAIL_SCOPE],
            "universe_domain": "googleapis.com",
            "account": credentials.user,
            "expiry": datetime.fromtimestamp(grant.expires_at, UTC).replace(tzinfo=None).isoformat() + "Z",
        }

    async def _listen_imap(self, port: int) -> int:
        try:
            self._imap = await asyncio.start_server(
                self._on_connection, HOST, port, limit=LINE_LIMIT, ssl=self._tls_context()
            )
        except OSError as error:
            raise PortTaken(_port_taken_message(port)) from error
        return _port_of(self._imap)

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)
        with suppress(asyncio.CancelledError):
            await imap.serve(reader, writer, self.backend, self.sessions)

    async def _listen_http(self, app: Starlette, port: int) -> int:
        server = HttpServer(app)
        try:
            listens_on = await server.start(port)
        except OSError as error:
            raise PortTaken(_port_taken_message(port)) from error
        self._http.append(server)
        return listens_on

    def _tls_context(self) -> ssl.SSLContext | None:
        if self.settings.tls_certificate is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.settings.tls_certificate, self.settings.tls_key)
        return context

    def _close_imap(self) -> None:
        if self._imap is not None:
            self._imap.close()
            self._imap = None

    def _open_imap(self) -> None:
        if self._imap is None and self._opening is None and self.imap_port:
            self._opening = asyncio.get_running_loop().create_task(self._reopen_imap())

    async def _reopen_imap(self) -> None:
        try:
            await self._listen_imap(self.imap_port)
        finally:
            self._opening = None


def _port_of(server: asyncio.Server) -> int:
    return int(server.sockets[0].getsockname()[1])


def _port_taken_message(port: int) -> str:
    return f"port {port} on {HOST} is in use; stop its owner or choose another port"
