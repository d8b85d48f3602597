"""Binds the sockets of the HTTP endpoints before anything else happens, and names who has a port already."""

from __future__ import annotations

import errno
import os
import socket
import sys
from pathlib import Path
from typing import Any

from email_ingestion.errors import ConfigurationError, OperationFailed
from email_ingestion.ops.redaction import redact

OPS_PORT, METRICS_PORT = 8080, 9090  # the producer's; the K-th worker's are K higher
BACKLOG = 1024
COMMAND_LENGTH = 80  # characters of a command line, enough to recognize it


def bind(host: str, port: int, setting: str) -> socket.socket:
    """Return a listening socket, where connections queue from now on; `setting` is the name of the port's setting.

    Raises OperationFailed when the port is taken, ConfigurationError when `host` is no address of this machine.
    """
    family, address = _resolve(host, port, setting)
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # so named, asyncio sets TCP_NODELAY
    try:
        _prepare(bound, family)
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise _explain(error, host, port, setting) from error
    return bound


def port_of(bound: socket.socket) -> int:
    """Return the port a socket listens on, also where the system chose it."""
    return int(bound.getsockname()[1])


def url_of(host: str, port: int) -> str:
    """Return the URL by which this machine reaches a port; an unspecified address is reached through loopback."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104 - compared, not bound
    return f"http://{name}:{port}"


def _resolve(host: str, port: int, setting: str) -> tuple[socket.AddressFamily, Any]:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise ConfigurationError(f"{_host_setting(setting)} {host} is neither an address nor a known name") from error
    return family, address


def _prepare(bound: socket.socket, family: socket.AddressFamily) -> None:
    if sys.platform == "win32":  # there, SO_REUSEADDR would let a second process take over the port
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    else:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)


def _explain(error: OSError, host: str, port: int, setting: str) -> Exception:
    if error.errno == errno.EADDRINUSE:
        return OperationFailed(f"port {port} is taken by {_owner(port)}; stop it or set {setting}")
    if error.errno == errno.EACCES:
        return OperationFailed(f"port {port} is not open to this user; set {setting} to one above 1023")
    return ConfigurationError(
        f"cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}; set {_host_setting(setting)}"
    )


def _host_setting(setting: str) -> str:
    """Return the name of the setting for the address, by that for the port."""
    return "WEB_HOST" if setting == "WEB_PORT" else "OPS_HOST"


def _owner(port: int) -> str:
    """Describe the process that listens on `port`, as far as this user may know it."""
    import psutil  # noqa: PLC0415 - 1 MB that is only needed when a port is taken

    try:
        pids = {
            connection.pid
            for connection in psutil.net_connections(kind="tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
        }
        pid = min(pid for pid in pids if pid)
        process = psutil.Process(pid)
        return f"PID {pid} ({_command(process.cmdline() or [process.name()])})"
    except (psutil.Error, ValueError):  # not ours to see, or gone meanwhile
        return "another process"


def _command(words: list[str]) -> str:
    return redact(" ".join([Path(words[0]).name, *words[1:3]])[:COMMAND_LENGTH])
