"""Send Python objects as pickles over the socket between a worker and its parser process.

A large message is neither copied into a pickle nor out of one. Both ends are this program: nothing from outside is
ever unpickled. Only one end sends at a time, so a read never takes bytes of the next object.
"""

from __future__ import annotations

import pickle
import socket
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from operator import attrgetter
from typing import Any, Final

from email_ingestion import records


def _by_fields(record: type) -> Callable[[Any], tuple[type, tuple[Any, ...]]]:
    values = attrgetter(*(field.name for field in fields(record)))
    return lambda one: (record, values(one))


# Pickle a record as its class and fields: the way of a frozen dataclass with slots takes twice as long.
_RECORDS: Final = {
    one: _by_fields(one) for one in vars(records).values() if isinstance(one, type) and is_dataclass(one)
}


def send(sock: socket.socket, value: Any) -> None:
    """Send one object; raises OSError, TimeoutError among them."""
    with sock.makefile("wb") as file:
        pickler = pickle.Pickler(file, protocol=pickle.HIGHEST_PROTOCOL)
        pickler.dispatch_table = _RECORDS
        pickler.dump(value)


def receive(sock: socket.socket) -> Any:
    """Receive one object; raises EOFError when the other end is gone, else OSError."""
    with sock.makefile("rb") as file:
        try:
            return pickle.load(file)  # noqa: S301 - see the module's docstring
        except pickle.UnpicklingError as error:
            raise EOFError("the other end is gone") from error
