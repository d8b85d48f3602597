"""Tells what speaks on a port where no IMAP server greets, in its own words: another service, TLS, or nobody.

It makes one more connection where the first one failed without a word.
"""

from __future__ import annotations

import re
import socket
import ssl
from contextlib import suppress

from email_ingestion.errors import quote_server
from email_ingestion.mailbox.imap_errors import UnusableServer
from email_ingestion.mailbox.metered_imap4 import UnexpectedGreeting

PROBE_SECONDS = 3.0
LINE_BYTES = 1024
PORTS = "check IMAP_HOST and IMAP_PORT: IMAP is mostly on 993 with TLS, on this machine also on 143 without"
NO_TLS = "it speaks no TLS: check IMAP_PORT and IMAP_TLS; IMAP with TLS at once is mostly on 993"
WITH_TLS = "set IMAP_TLS=true, or IMAP_PORT to a port without TLS"
_TLS_RECORD = re.compile(rb"[\x14-\x17]\x03[\x00-\x04]")
_SERVICES = (
    (re.compile(rb"\+OK"), "a POP3 server"),
    (re.compile(rb"220[ -].*(?:FTP)", re.IGNORECASE), "an FTP server"),
    (re.compile(rb"(?:220|421|450|554)[ -]"), "an SMTP server"),
    (re.compile(rb"HTTP/\d|<!DOCTYPE|<html", re.IGNORECASE), "a web server"),
    (re.compile(rb"SSH-"), "an SSH server"),
    (re.compile(rb"\"?IMPLEMENTATION\"? ", re.IGNORECASE), "a ManageSieve server"),
    (re.compile(rb"-ERR|-DENIED|-NOAUTH|\$-1"), "a Redis server"),
)


def explain_failure(error: BaseException, host: str, port: int, *, tls: bool) -> UnusableServer | None:
    """Return why no IMAP session began, if what answers is no IMAP server or wants TLS where we do not; else None."""
    if isinstance(error, UnexpectedGreeting):
        return _unusable(host, port, error.greeting)
    no_tls = isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLCertVerificationError)
    if tls and no_tls and (line := listen(host, port)):
        return _named(f"{host}:{port} does not speak TLS: {_service(line)}, {quote_server(_text(line))}", NO_TLS)
    if not tls and (isinstance(error, TimeoutError) or "socket error: EOF" in str(error)):
        line = listen(host, port)
        if line and not b"* ".startswith(line[:2]):  # one byte may be the beginning of a greeting
            return _unusable(host, port, line)
    return None


def listen(host: str, port: int) -> bytes:
    """Return what a server sends without TLS first, or in answer to a command; nothing when it stays silent."""
    with suppress(OSError), socket.create_connection((host, port), timeout=PROBE_SECONDS) as sock:
        with suppress(TimeoutError):
            return sock.recv(LINE_BYTES)
        sock.sendall(b"a1 CAPABILITY\r\n\r\n")
        return sock.recv(LINE_BYTES)
    return b""


def _unusable(host: str, port: int, line: bytes) -> UnusableServer:
    if _TLS_RECORD.match(line):
        return _named(f"{host}:{port} speaks TLS, and IMAP_TLS is false", WITH_TLS)
    return _named(f"{host}:{port} is {_service(line)} and no IMAP server: {quote_server(_text(line))}", PORTS)


def _named(message: str, remedy: str) -> UnusableServer:
    error = UnusableServer(message)
    error.remedy = remedy
    return error


def _service(line: bytes) -> str:
    if line.startswith(b"* "):
        return "an IMAP server without it"
    return next((name for pattern, name in _SERVICES if pattern.match(line)), "something else")


def _text(line: bytes) -> str:
    return line.partition(b"\n")[0].decode("utf-8", "replace")
