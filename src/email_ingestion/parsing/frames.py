"""Python objects over a socket between a worker and its parser process: a length, then a pickle.

Both ends are this program: nothing that comes from outside is ever unpickled.
"""

from __future__ import annotations

import pickle
import socket
import struct
from typing import Any

_LENGTH = struct.Struct(">Q")


def send(sock: socket.socket, value: Any) -> None:
    """Send one object; raises OSError, TimeoutError among them."""
    data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    sock.sendall(_LENGTH.pack(len(data)))
    sock.sendall(data)


def receive(sock: socket.socket) -> Any:
    """Receive one object; raises EOFError when the other end is gone, else OSError."""
    (length,) = _LENGTH.unpack(_exactly(sock, _LENGTH.size))
    return pickle.loads(_exactly(sock, length))  # noqa: S301 - see the module's docstring


def _exactly(sock: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size:
        count = sock.recv_into(view[got:])
        if not count:
            raise EOFError
        got += count
    return data
