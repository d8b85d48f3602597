"""A TCP proxy between our processes and a server, whose network can be made bad while connections last."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time

CHUNK = 65_536
TRICKLE_BYTES = 64  # at a time
TRICKLE_SECONDS = 0.05
LOOK_SECONDS = 0.05  # between two looks whether a stalled network moves again

# stall: everything waits and comes later. cut: every connection is reset, and each new one. half_open: the connections
# that are there stay open for ever and nothing passes; new ones work. trickle: a few bytes at a time. swallow: as
# half_open, new ones too.
MANNERS = ("stall", "cut", "half_open", "trickle", "swallow")


class Proxy:
    """Listens on a port of its own; `manners` are those in force, the last one counts."""

    def __init__(self, target: int) -> None:
        """Forward to this port of this machine."""
        self._target = target
        self.manners: list[str] = []
        self._pairs: list[_Pair] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._closed = False
        threading.Thread(target=self._accept, name=f"proxy {self.port}", daemon=True).start()

    @property
    def manner(self) -> str:
        """What the network is like now; empty when nothing is wrong."""
        return self.manners[-1] if self.manners else ""

    def begin(self, manner: str) -> None:
        """Make it bad in this way."""
        self.manners.append(manner)
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            if manner == "cut":
                pair.reset()
            elif manner in ("half_open", "swallow"):
                pair.silent = True

    def end(self, manner: str) -> None:
        """Make it as good as before; connections that fell silent remain so."""
        self.manners.remove(manner)

    def close(self) -> None:
        """Reset everything."""
        self._closed = True
        self._listener.close()
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            pair.reset()

    def _accept(self) -> None:
        while not self._closed:
            try:
                ours, _ = self._listener.accept()
            except OSError:
                return
            if self.manner == "cut":
                _reset(ours)
                continue
            threading.Thread(target=self._serve, args=(ours,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._target), timeout=5)
        except OSError:
            _reset(client)
            return
        server.settimeout(None)
        pair = _Pair(client, server, silent=self.manner == "swallow")
        with self._lock:
            self._pairs = [each for each in self._pairs if not each.over]
            self._pairs.append(pair)
        back = threading.Thread(target=self._pump, args=(pair, server, client), daemon=True)
        back.start()
        self._pump(pair, client, server)
        back.join()
        pair.reset()

    def _pump(self, pair: _Pair, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                self._pass_on(pair, data, target)
            if not pair.silent:
                target.shutdown(socket.SHUT_WR)
            return
        pair.reset()

    def _pass_on(self, pair: _Pair, data: bytes, target: socket.socket) -> None:
        while data and not pair.silent:
            if self.manner == "stall" and not self._closed:
                time.sleep(LOOK_SECONDS)
            elif self.manner == "trickle":
                target.sendall(data[:TRICKLE_BYTES])
                data = data[TRICKLE_BYTES:]
                time.sleep(TRICKLE_SECONDS)
            else:
                target.sendall(data)
                return


class _Pair:
    """The two sockets of a connection."""

    def __init__(self, client: socket.socket, server: socket.socket, *, silent: bool) -> None:
        self._client, self._server = client, server
        self.silent = silent
        self.over = False

    def reset(self) -> None:
        self.over = True
        for each in (self._client, self._server):
            _reset(each)


def _reset(connection: socket.socket) -> None:
    """End it with RST, not FIN; also for a thread that reads from it."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RD)
    with contextlib.suppress(OSError):
        connection.close()
