"""A running sandbox, an imapclient session on it, and a bare line client for what imapclient hides."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import imapclient
import pytest

from gmail_sandbox import Credentials, RunningSandbox, SandboxSettings, running_sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def _mail(number: int, text: str = "hello", **headers: str) -> bytes:
    fields = {"From": "Ada <ada@example.net>", "Message-ID": f"<m{number}@example.net>", "Subject": f"number {number}"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{head}\r\n{text}\r\n".encode()


@pytest.fixture
def mail() -> Callable[..., bytes]:
    return _mail


@pytest.fixture
def sandbox() -> Iterator[RunningSandbox]:
    with running_sandbox(SandboxSettings(credentials=Credentials(app_password="abcd efgh"))) as running:
        yield running


@pytest.fixture
def connect(sandbox: RunningSandbox) -> Iterator[Callable[..., imapclient.IMAPClient]]:
    opened = []

    def open_(*, login: bool = True, timeout: float = 5) -> imapclient.IMAPClient:
        client = imapclient.IMAPClient("127.0.0.1", port=sandbox.imap_port, ssl=False, timeout=timeout)
        client.normalise_times = False
        opened.append(client)
        if login:
            client.oauth2_login(sandbox.user, sandbox.access_token())
        return client

    yield open_
    for client in opened:
        with contextlib.suppress(Exception):
            client.shutdown()


@pytest.fixture
def client(connect: Callable[..., imapclient.IMAPClient]) -> imapclient.IMAPClient:
    return connect()


class Wire:
    """Sends and receives exact bytes."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        self._buffer = b""
        self.greeting = self.line()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            received = self.socket.recv(65536)
            if not received:
                raise EOFError(self._buffer)
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def rest(self) -> bytes:
        """Return all bytes until the server closes."""
        while received := self.socket.recv(65536):
            self._buffer += received
        return self._buffer

    def run(self, command: bytes) -> list[bytes]:
        self.send(b"t " + command + b"\r\n")
        return self.until(b"t ")

    def until(self, start: bytes) -> list[bytes]:
        lines = [self.line()]
        while not lines[-1].startswith(start):
            lines.append(self.line())
        return lines

    def login(self, sandbox: RunningSandbox) -> list[bytes]:
        return self.run(b"AUTHENTICATE XOAUTH2 " + _xoauth2(sandbox.user, sandbox.access_token()))


def _xoauth2(user: str, token: str) -> bytes:
    return base64.b64encode(f"user={user}\x01auth=Bearer {token}\x01\x01".encode())


@pytest.fixture
def xoauth2() -> Callable[[str, str], bytes]:
    return _xoauth2


@pytest.fixture
def wire_to() -> Iterator[Callable[[RunningSandbox], Wire]]:
    with contextlib.ExitStack() as opened:

        def open_(sandbox: RunningSandbox) -> Wire:
            made = Wire(sandbox.imap_port)
            opened.callback(made.socket.close)
            return made

        yield open_


@pytest.fixture
def wire(sandbox: RunningSandbox, wire_to: Callable[[RunningSandbox], Wire]) -> Wire:
    return wire_to(sandbox)


@pytest.fixture
def known_wire(sandbox: RunningSandbox, wire: Wire) -> Wire:
    wire.login(sandbox)
    return wire


class Http:
    """The control API as a client sees it."""

    def __init__(self, base: str) -> None:
        self._base = base

    def raw(
        self, method: str, path: str, body: bytes = b"", content_type: str = "application/json"
    ) -> tuple[int, bytes]:
        request = urllib.request.Request(self._base + path, data=body or None, method=method)
        request.add_header("Content-Type", content_type)
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def call(self, method: str, path: str, value: object = None) -> tuple[int, dict[str, object]]:
        status, body = self.raw(method, path, b"" if value is None else json.dumps(value).encode())
        return status, json.loads(body)


@pytest.fixture
def control(sandbox: RunningSandbox) -> Http:
    return Http(sandbox.control_url)
