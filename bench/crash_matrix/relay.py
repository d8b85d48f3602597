"""A TCP relay before a server, and a resolver: the network between it and its clients, cut in the ways networks are."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from bench.crash_matrix.clock import FailingNames
from tests.servers.ports import free_port

CHUNK = 65_536
LOOK_SECONDS = 0.2  # how soon a connection sees that the network is whole again
RESET = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class Connection:
    """One client's connection and ours to the server; once `forgotten` nothing passes any more, and nobody is told."""

    client: socket.socket
    server: socket.socket
    forgotten: threading.Event = field(default_factory=threading.Event)

    def end(self) -> None:
        """Close both sides; the client is told with a reset."""
        for side in (self.client, self.server):
            with suppress(OSError):
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
            side.close()


class Relay:
    """Listens on `port`; `target` is the port it passes connections on to, and may change."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = free_port()
        self._passing = threading.Event()
        self._passing.set()
        self._over = threading.Event()
        self._connections: set[Connection] = set()
        self._listener: socket.socket | None = None
        self.listen()

    def listen(self) -> None:
        """Take connections, on the same port as before."""
        listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), name="relay", daemon=True).start()

    def refuse(self) -> None:
        """Refuse connections and reset those there are."""
        listener, self._listener = self._listener, None
        if listener:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for connection in list(self._connections):
            connection.end()
        self._connections.clear()

    def silence(self) -> None:
        """Pass nothing on and say nothing: connections hang, new ones are taken and hang too."""
        self._passing.clear()

    def mend(self, *, forget: bool = False) -> None:
        """Let everything pass; with `forget` the connections of before stay half-open for ever."""
        if forget:
            for connection in list(self._connections):
                connection.forgotten.set()
        self._passing.set()
        if self._listener is None:
            self.listen()

    def close(self) -> None:
        """End everything."""
        self._over.set()
        self.refuse()
        self._passing.set()

    def _accept(self, listener: socket.socket) -> None:
        while not self._over.is_set():
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        self._wait()
        try:
            server = socket.create_connection(("127.0.0.1", self.target), timeout=10)
        except OSError:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.close()
            return
        server.settimeout(None)
        for side in (client, server):
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(client, server)
        self._connections.add(connection)
        for source, sink in ((client, server), (server, client)):
            threading.Thread(target=self._pump, args=(connection, source, sink), daemon=True).start()

    def _pump(self, connection: Connection, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK):
                self._wait()
                if connection.forgotten.is_set():
                    return
                sink.sendall(data)
            self._wait()
        if not connection.forgotten.is_set():
            connection.end()
            self._connections.discard(connection)

    def _wait(self) -> None:
        while not self._passing.wait(LOOK_SECONDS) and not self._over.is_set():
            pass


@dataclass
class Network:
    """What lies between a process and a server."""

    relay: Relay
    names: FailingNames


@contextmanager
def relay_to(target: int) -> Iterator[Relay]:
    """Start a relay to a port."""
    relay = Relay(target)
    try:
        yield relay
    finally:
        relay.close()
