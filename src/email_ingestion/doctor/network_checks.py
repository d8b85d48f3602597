"""Checks of the way to a server: its name, its port, its certificate and its clock."""

from __future__ import annotations

import socket
import ssl
import time
from datetime import UTC
from email.utils import parsedate_to_datetime

import httpx

from email_ingestion.certificates import explain_tls_error, tls_remedy
from email_ingestion.doctor.findings import Finding
from email_ingestion.http_requests import ask
from email_ingestion.mailbox.greeting import NO_TLS, explain_failure
from email_ingestion.ops.alert_thresholds import alert_thresholds
from email_ingestion.settings import SANDBOX_PROFILE, is_loopback

SECONDS = 10.0
RESTART_SANDBOX = "./scripts/start.sh starts what has died of the sandbox again, with what it held"


def check_connection(check: str, host: str, port: int, *, tls: bool) -> Finding:
    """Check name, connection and TLS, in that order; the first that fails is the cause."""
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return Finding(check, "failed", f"the name {host} is not known: {error.strerror}", f"getent hosts {host}")
    started = time.monotonic()
    try:
        with socket.create_connection((host, port), timeout=SECONDS) as plain:
            if tls:
                return _handshake(check, host, plain)
    except ssl.SSLCertVerificationError as error:
        cause = explain_tls_error(error, host, port) or str(error)
        return Finding(check, "failed", cause, tls_remedy(error, host, port))
    except ssl.SSLError as error:
        known = explain_failure(error, host, port, tls=tls)
        remedy = known.remedy if known else NO_TLS
        cause = str(known) if known else f"{host}:{port} does not speak TLS: {error.reason or error}"
        return Finding(check, "failed", cause, remedy)
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = unreachable_remedy(error, host, port)
        return Finding(check, "failed", f"{host}:{port} cannot be reached: {reason}", remedy)
    return Finding(check, "ok", f"{host}:{port} in {1000 * (time.monotonic() - started):.0f} ms, without TLS")


def unreachable_remedy(error: OSError, host: str, port: int) -> str:
    """Return what to do about a server that takes no connection: one of this machine is behind no firewall."""
    if not is_loopback(host):
        return f"nc -vz {host} {port}; firewall?"
    if SANDBOX_PROFILE.exists():
        return RESTART_SANDBOX
    if isinstance(error, ConnectionRefusedError):
        return f"nothing listens on port {port} of this machine: start that server, or name its address and port"
    return f"ss -ltnp 'sport = :{port}' shows what listens there"


def _handshake(check: str, host: str, plain: socket.socket) -> Finding:
    with ssl.create_default_context().wrap_socket(plain, server_hostname=host) as secure:
        certificate = secure.getpeercert() or {}
        version = secure.version()
    ends = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    left = ends - time.time()
    description = f"{host}, {version}, certificate good for {left / 86_400:.0f} days"
    if left < alert_thresholds()["certificate_seconds_warning"]:
        return Finding(check, "degraded", description, f"whoever runs {host} must renew its certificate")
    return Finding(check, "ok", description)


def server_time(url: str) -> float | None:
    """Return the time of the server at `url` in Unix seconds; None when it does not answer with a date."""
    try:
        date = ask("HEAD", url, seconds=2 * SECONDS, silence=SECONDS).headers.get("Date", "")
        return parsedate_to_datetime(date).replace(tzinfo=UTC).timestamp() if date else None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, OverflowError):
        return None
