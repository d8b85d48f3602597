"""Somebody who is told: an HTTP server that keeps what is posted to it, and an SMTP server that keeps mail."""

from __future__ import annotations

import gzip
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Receiver:
    """What reached it; `status` is what it answers."""

    port: int = 0
    status: int = 200
    posted: list[Any] = field(default_factory=list)
    mail: list[str] = field(default_factory=list)


@contextmanager
def http_receiver(read: Callable[[bytes], Any] = json.loads) -> Iterator[Receiver]:
    """Keeps what `read` makes of each body."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if receiver.status == 200:
                body = gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body
                receiver.posted.append(read(body))
            self.send_response(receiver.status)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with served(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as receiver.port:
        yield receiver


@contextmanager
def smtp_receiver() -> Iterator[Receiver]:
    """Takes any mail; no STARTTLS, no login."""
    receiver = Receiver()

    class Session(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            while line := self.rfile.readline():
                verb = line[:4].upper().strip()
                if verb == b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    lines = iter(self.rfile.readline, b".\r\n")
                    receiver.mail.append(b"".join(lines).decode())
                self.wfile.write(b"221 bye\r\n" if verb == b"QUIT" else b"250 ok\r\n")

    with served(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Session)) as receiver.port:
        yield receiver


@contextmanager
def served(server: Any) -> Iterator[int]:
    """Let a threading server of `socketserver` answer in a thread of its own; yields its port."""
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
