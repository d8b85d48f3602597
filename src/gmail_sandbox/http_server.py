"""The smallest HTTP/1.1 server that the OAuth endpoints and the control API need: one request per connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

_BODY_LIMIT = 64 * 1024 * 1024
_LINE_LIMIT = 64 * 1024
_READ_SECONDS = 30.0
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class Request:
    """A parsed request; header names are lower case."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    def parameter(self, name: str, default: str = "") -> str:
        """Return the first value of a query parameter."""
        return self.query.get(name, [default])[0]

    def form(self) -> dict[str, str]:
        """Return the fields of a form-encoded body."""
        fields = parse_qs(self.body.decode("utf-8", "replace"), keep_blank_values=True)
        return {name: values[0] for name, values in fields.items()}

    def json(self) -> dict[str, object]:
        """Return the JSON object in the body; raise BadRequest when there is none."""
        try:
            value = json.loads(self.body or b"{}")
        except ValueError as error:
            raise BadRequest(f"the body is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise BadRequest("the body must be a JSON object")
        return value


@dataclass(frozen=True)
class Response:
    """An answer."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


class BadRequest(Exception):
    """The request cannot be understood. `args[0]` is a sentence."""


Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


def answer(value: object, status: int = 200) -> Response:
    """Return a JSON answer."""
    return Response(status, json.dumps(value, ensure_ascii=False).encode() + b"\n")


def error(status: int, sentence: str) -> Response:
    """Return a JSON answer that says what is wrong."""
    return answer({"error": sentence}, status)


async def start(handler: Handler, port: int) -> asyncio.Server:
    """Listen on loopback; OSError when the port is taken."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await _serve(handler, reader, writer)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    return await asyncio.start_server(connected, "127.0.0.1", port, limit=_LINE_LIMIT)


async def _serve(handler: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        async with asyncio.timeout(_READ_SECONDS):
            request = await _read(reader, writer)
        response = await _until_gone(handler(request), reader)
    except BadRequest as bad:
        response = error(400, str(bad))
    except TimeoutError:
        response = error(408, "the request did not arrive in time")
    if response is not None:
        await _write(writer, response)


async def _until_gone(work: Awaitable[Response], reader: asyncio.StreamReader) -> Response | None:
    """Return the answer, or None once the client has given up waiting for it."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(reader.read(1))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done() or not gone.done() or gone.result():
            return await task
        return None
    finally:
        task.cancel()
        gone.cancel()


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
    try:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ", 2)
    except (ValueError, asyncio.LimitOverrunError) as malformed:
        raise BadRequest("this is not HTTP/1.1") from malformed
    headers = {}
    for line in filter(None, lines[1:]):
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    _check_host(headers)
    if headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = await reader.readexactly(_length(headers))
    parts = urlsplit(target)
    return Request(method, unquote(parts.path), parse_qs(parts.query, keep_blank_values=True), headers, body)


def _check_host(headers: dict[str, str]) -> None:
    """Refuse names that only lead here by DNS rebinding: a web page must not drive the sandbox."""
    host = headers.get("host", "127.0.0.1").rsplit(":", 1)[0] if headers.get("host") != "[::1]" else "[::1]"
    if host not in _LOOPBACK:
        raise BadRequest("this server answers on loopback only")


def _length(headers: dict[str, str]) -> int:
    if "transfer-encoding" in headers:
        raise BadRequest("send a Content-Length; chunked bodies are not read")
    text = headers.get("content-length", "0")
    if not text.isdigit() or int(text) > _BODY_LIMIT:
        raise BadRequest(f"Content-Length must be a number up to {_BODY_LIMIT}")
    return int(text)


async def _write(writer: asyncio.StreamWriter, response: Response) -> None:
    headers = {
        "Content-Type": response.content_type,
        "Content-Length": str(len(response.body)),
        "Connection": "close",
        "Cache-Control": "no-store",
        **response.headers,
    }
    head = f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(head.encode("latin-1") + b"\r\n" + response.body)
    await writer.drain()
