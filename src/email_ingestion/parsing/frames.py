"""Python objects over a socket between a worker and its parser process, as pickles.

A large message is neither copied into a pickle nor out of one. Both ends are this program: nothing that comes from
outside is ever unpickled. One end speaks at a time, so that nothing of the next object is read with this one.
"""

from __future__ import annotations

import pickle
import socket
from typing import Any


def send(sock: socket.socket, value: Any) -> None:
    """Send one object; raises OSError, TimeoutError among them."""
    with sock.makefile("wb") as file:
        pickle.dump(value, file, protocol=pickle.HIGHEST_PROTOCOL)


def receive(sock: socket.socket) -> Any:
    """Receive one object; raises EOFError when the other end is gone, else OSError."""
    with sock.makefile("rb") as file:
        try:
            return pickle.load(file)  # noqa: S301 - see the module's docstring
        except pickle.UnpicklingError as error:
            raise EOFError("the other end is gone") from error
