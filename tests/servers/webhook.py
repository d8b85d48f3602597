"""A webhook's receiver that verifies signatures with the reference library and answers what it is told to."""

from __future__ import annotations

import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # the one of the specification's examples


@dataclass
class Receiver:
    """`answer` gets the identity and says status and header fields; what was taken with a 2xx is in `taken`."""

    url: str = ""
    secret: str = SECRET
    answer: Callable[[str], tuple[int, dict[str, str]]] = lambda _: (204, {})
    options: int = 204  # the answer to those who ask only how it is
    refuse: int = 0  # the status for what the library refuses; 0: the connection just ends
    pinged: int = 0
    digest: int = 404  # the answer to GET
    requests: list[str] = field(default_factory=list)  # the targets of those
    asked: Counter[str] = field(default_factory=Counter)
    taken: Counter[str] = field(default_factory=Counter)
    bodies: dict[str, Any] = field(default_factory=dict)
    kinds: set[str] = field(default_factory=set)  # the content types of the posts
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, status: int = 500, **fields: str) -> None:
        self.answer = lambda _: (status, fields)
        self.options = status

    def work(self) -> None:
        self.answer = lambda _: (204, {})
        self.options = 204

    def receive(self, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str]]:
        try:
            said = Webhook(self.secret).verify(body, headers)
        except WebhookVerificationError:
            if self.refuse:
                return self.refuse, {}
            raise  # the test fails by what is then not taken
        email_id = headers["webhook-id"]
        status, fields = self.answer(email_id)
        with self.lock:
            self.asked[email_id] += 1
            self.kinds.add(headers.get("content-type", ""))
            if 200 <= status < 300:
                self.taken[email_id] += 1
                self.bodies[email_id] = said
        return status, fields


@contextmanager
def receiving(receiver: Receiver | None = None, port: int = 0, certificate: Path | None = None) -> Iterator[Receiver]:
    """A receiver on a port of its own; or one that was here before, on its old port."""
    receiver = receiver or Receiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            self._say(*receiver.receive({name.lower(): value for name, value in self.headers.items()}, body))

        def do_GET(self) -> None:
            receiver.requests.append(self.path)
            self._say(receiver.digest, {})

        def do_OPTIONS(self) -> None:
            receiver.pinged += 1
            self._say(receiver.options, {})

        def _say(self, status: int, fields: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in fields.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

    server = Server(("127.0.0.1", port), Handler)
    if certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    receiver.url = f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}/hook"
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
