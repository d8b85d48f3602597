"""Two sinks that can be told to misbehave, and that note what they took when: a webhook and a Python function."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

# What the webhook does with a post. Only "" takes it.
ANSWERS = ("500", "503_later", "429", "301", "trickle", "hang", "reset", "garbage")
ASKED_TO_WAIT = 3  # seconds of Retry-After
HELD = 60.0  # seconds for which a hanging answer is held at most

# What the function does with a call. Only "" takes it.
CALLS = ("exits", "hangs", "raises", "aborts")

MODULE = '''\
"""A sink that does what the file `sink-orders` says, and notes what it took in `sink-taken`."""

import os
import sys
import time
from pathlib import Path


def take(email):
    orders = Path({orders!r}).read_text()
    if orders == "exits":
        sys.exit(3)
    if orders == "hangs":
        time.sleep(600)
    if orders == "raises":
        raise OSError("no room")
    if orders == "aborts":
        os.abort()
    with open({taken!r}, "a") as file:
        file.write(f"{{email.email_id}} {{time.monotonic()}}\\n")
'''


class FunctionSink:
    """The function, in `module` of a folder that belongs into PYTHONPATH."""

    module = "handed_over"

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._orders, self._taken = folder / "sink-orders", folder / "sink-taken"
        self._orders.touch()
        self._taken.touch()
        self.lasting: list[str] = []
        (folder / f"{self.module}.py").write_text(MODULE.format(orders=str(self._orders), taken=str(self._taken)))

    def begin(self, call: str) -> None:
        """Let it do so from now on."""
        self.lasting.append(call)
        self._say()

    def end(self, call: str) -> None:
        """Let it do what it did before."""
        self.lasting.remove(call)
        self._say()

    def taken(self) -> dict[str, list[float]]:
        """Return when each message was taken, in monotonic seconds."""
        taken = defaultdict(list)
        for line in self._taken.read_text().splitlines():
            identity, _, when = line.rpartition(" ")
            taken[identity].append(float(when))
        return taken

    def _say(self) -> None:
        made = self._orders.with_suffix(".new")
        made.write_text(self.lasting[-1] if self.lasting else "")
        made.replace(self._orders)


class WebhookSink:
    """A receiver; `lasting` are the answers in force, the last one counts."""

    def __init__(self) -> None:
        self.lasting: list[str] = []
        self.port = 0
        self._taken: dict[str, list[float]] = defaultdict(list)
        self._lock = threading.Lock()

    def begin(self, answer: str) -> None:
        """Answer so from now on."""
        self.lasting.append(answer)

    def end(self, answer: str) -> None:
        """Answer as before."""
        self.lasting.remove(answer)

    def taken(self) -> dict[str, list[float]]:
        """Return when each message was taken, in monotonic seconds."""
        with self._lock:
            return {identity: list(times) for identity, times in self._taken.items()}

    def take(self, identity: str) -> None:
        """Note it."""
        with self._lock:
            self._taken[identity].append(time.monotonic())

    @property
    def answer(self) -> str:
        """The answer in force."""
        return self.lasting[-1] if self.lasting else ""


@contextmanager
def running_webhook() -> Iterator[WebhookSink]:
    """A receiver on a port of its own."""
    sink = WebhookSink()

    class Handler(_Answer):
        receiver = sink

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    sink.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield sink
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    receiver: WebhookSink

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        identity = self.headers["webhook-id"]
        answer = self.receiver.answer
        if not answer:
            self.receiver.take(identity)
        self._give(answer)

    def do_OPTIONS(self) -> None:
        self._give(self.receiver.answer)

    def _give(self, answer: str) -> None:
        if answer in ("", "500", "503_later", "429", "301"):
            self.send_response(int(answer[:3] or 204))
            if answer in ("503_later", "429"):
                self.send_header("retry-after", str(ASKED_TO_WAIT))
            if answer == "301":
                self.send_header("location", "https://www.example.com/")
            self.send_header("content-length", "0")
            self.end_headers()
        elif answer == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
        elif answer == "garbage":
            self.wfile.write(b"\x16\x03\x01\x02\x00 this is no HTTP\r\n\r\n")
            self.close_connection = True
        else:
            self._hold(answer)

    def _hold(self, answer: str) -> None:
        """Never come to an end, whether a byte comes now and then or not."""
        self.close_connection = True
        if answer == "trickle":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        end = time.monotonic() + HELD
        while self.receiver.answer == answer and time.monotonic() < end:
            time.sleep(0.5)
            if answer == "trickle":
                self.wfile.write(b"x-more: 1\r\n")

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""
