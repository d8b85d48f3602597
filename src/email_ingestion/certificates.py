"""Says why TLS failed in words an operator can act on, and when the certificate of a server ends."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime

SECONDS = 5.0  # for a connection that only asks for the certificate
_EXPIRED = 10  # X509_V_ERR_CERT_HAS_EXPIRED
_OTHER_NAME = {62, 64}  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH


def explain_tls_error(error: BaseException, host: str, port: int) -> str | None:
    """Return what is wrong with the TLS of a server, from an error or what caused it; None when it is something else.

    For an expired certificate it connects once more, to read the date: the error does not tell it.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _certificate_problem(cause, host, port)
        if isinstance(cause, ssl.SSLError):
            return f"TLS with {host}:{port} fails: {_reason(cause)}"
        cause = cause.__cause__ or cause.__context__
    return None


def tls_remedy(error: ssl.SSLCertVerificationError, host: str, port: int) -> str:
    """Return what an operator does about a certificate that is refused."""
    shown = f"openssl s_client -connect {host}:{port} </dev/null | openssl x509 -noout -dates -ext subjectAltName"
    if error.verify_code == _EXPIRED:
        return f"whoever runs {host} must renew it; see whether this machine's clock is right (date -u)"
    if error.verify_code in _OTHER_NAME:
        return f"set IMAP_HOST to a name that the certificate has, if it is that server's: {shown}"
    return (
        f"ask whoever runs {host} whether it is theirs: {shown}; an authority of your own goes into a PEM file that "
        "SSL_CERT_FILE names, then email-ingestion restart producer"
    )


def _certificate_problem(error: ssl.SSLCertVerificationError, host: str, port: int) -> str:
    ended = _end_of_validity(host, port) if error.verify_code == _EXPIRED else None
    if ended:
        return f"the certificate of {host} expired on {ended:%Y-%m-%d at %H:%M} UTC"
    return f"the certificate of {host} is not trusted: {error.verify_message.rstrip('.')}"


def _end_of_validity(host: str, port: int) -> datetime | None:
    """Return when the certificate of a server expired; None when it did not, or does not tell."""
    from cryptography import x509  # noqa: PLC0415 - 5 MB that nobody needs whose certificates are good

    try:
        pem = ssl.get_server_certificate((host, port), timeout=SECONDS)
        ended = x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc
    except (OSError, ValueError):
        return None
    return ended if ended < datetime.now(UTC) else None  # else another one of its chain has expired


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()


def certificate_end(host: str, port: int) -> float:
    """Return when a server's certificate ends, in Unix seconds. Raises OSError when it cannot be had or trusted."""
    context = ssl.create_default_context()
    with (
        socket.create_connection((host, port), timeout=SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=host) as secure,
    ):
        certificate = secure.getpeercert() or {}
    return float(ssl.cert_time_to_seconds(str(certificate["notAfter"])))
