"""Ports for what is started here: those that are usual, or others where somebody has them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from email_ingestion.errors import ConfigurationError, OperationFailed


def on_free_ports(wanted: Sequence[int], start: Callable[[Sequence[int]], None]) -> Sequence[int]:
    """Start something on ports that are free, and again if others took them meanwhile; returns the ports.

    Raises what `start` does when the ports are not the reason.
    """
    while True:
        ports = [_free_port(port) for port in wanted]
        try:
            start(ports)
        except (ConfigurationError, OperationFailed):
            if ports == [_free_port(port) for port in ports]:
                raise
        else:
            return ports


def _free_port(wanted: int) -> int:
    """`wanted` if nobody listens there, else a port the system chooses."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OperationFailed("this machine has no free port")
