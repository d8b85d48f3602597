"""A server that answers what hurts: redirects, packed bombs, brackets and bytes without end, a byte now and then."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import zstandard

from tests.servers.receiver import served

PRIVATE = "http://169.254.169.254/latest/meta-data"
BOMB = zstandard.ZstdCompressor().compress(b"0" * 256 * 1024 * 1024)


@dataclass
class Hostile:
    """Its address, and the request lines that came; `other` is one that only a redirect leads to."""

    url: str = ""
    other: str = ""
    asked: list[str] = field(default_factory=list)


def answer(status: str, body: bytes = b"", **fields: str) -> Callable[[socket.socket], None]:
    """Answer with a whole message."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *lines, "", ""])
    return lambda connection: connection.sendall(head.encode() + body)


def endless(connection: socket.socket) -> None:
    """Answer without end, as fast as it is read; the other side has to hang up."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n")
    while True:
        connection.sendall(b"[" * 65536)


def trickle(connection: socket.socket) -> None:
    """Send the head of an answer a byte at a time, for ever."""
    ended = threading.Event()
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while not ended.wait(0.05):
        connection.sendall(b"x")


PACKED = answer("200 OK", BOMB, Content_Encoding="zstd", Content_Type="application/json")
DEEP = answer("200 OK", b"[" * 100_000, Content_Type="application/json")


@contextmanager
def hostile(reply: Callable[[socket.socket], None] | str) -> Iterator[Hostile]:
    """Answer every request with `reply`, or with a redirect of this status that leads to `other`."""
    found = Hostile()

    class Session(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            line = self.rfile.readline(65536).decode("latin-1").strip()
            length = 0
            while (head := self.rfile.readline(65536)) not in {b"\r\n", b""}:
                if head.lower().startswith(b"content-length:"):
                    length = int(head.partition(b":")[2])
            self.rfile.read(length)
            found.asked.append(line)
            with suppress(OSError):
                if isinstance(reply, str):
                    answer(reply, Location=found.other)(self.request)
                else:
                    reply(self.request)

    with served(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Session)) as port:
        found.url = f"http://127.0.0.1:{port}"
        found.other = f"{found.url}/elsewhere"
        yield found
