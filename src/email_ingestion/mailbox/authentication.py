"""Logging in by a way that the server offers, with any characters in user name and password.

    PREAUTH                     nothing to do
    token    AUTH=XOAUTH2       AUTHENTICATE XOAUTH2
             AUTH=OAUTHBEARER   AUTHENTICATE OAUTHBEARER (RFC 7628)
             neither            an operator must choose another way
    password in ASCII           LOGIN; AUTHENTICATE PLAIN where LOGIN is disabled or unknown
             other characters   AUTHENTICATE PLAIN in UTF-8 (RFC 4616); LOGIN with literals where that is refused

A server that says no is not asked again in another way: providers count failures.
"""

from __future__ import annotations

from imapclient.exceptions import IMAPClientAbortError, IMAPClientError

from email_ingestion.errors import AuthenticationFailed, EmailIngestionError, IMAPCommandRefused, quote_server
from email_ingestion.mailbox.imap4 import Imap4
from email_ingestion.mailbox.imap_errors import translate_login
from email_ingestion.mailbox.server_answers import USE_TLS

TAKES_PASSWORDS = "set IMAP_AUTH=password and IMAP_PASSWORD, or ask whoever runs the server to switch OAuth2 on"


def log_in(imap4: Imap4, user: str, password: str, token: str | None) -> None:
    """Log in with `token`, or with `password` without one.

    Raises AuthenticationFailed or a subclass when the credentials are refused, else IMAPConnectionError.
    """
    if imap4.state == "AUTH":  # PREAUTH: the server knows us by other means
        return
    if token is not None:
        _with_token(imap4, user, token)
    else:
        _with_password(imap4, user, password)


def _with_token(imap4: Imap4, user: str, token: str) -> None:
    challenges: list[bytes] = []  # the error, as JSON
    mechanism = next((each for each in ("XOAUTH2", "OAUTHBEARER") if f"AUTH={each}" in imap4.capabilities), "")
    try:
        if mechanism == "XOAUTH2":
            imap4.authenticate_by(mechanism, f"user={user}\1auth=Bearer {token}\1\1".encode(), b"", challenges.append)
        elif mechanism:
            name = user.replace("=", "=3D").replace(",", "=2C")
            imap4.authenticate_by(mechanism, f"n,a={name},\1auth=Bearer {token}\1\1".encode(), b"\1", challenges.append)
        else:
            raise _not_offered(imap4, "access tokens (XOAUTH2)", TAKES_PASSWORDS)
    except IMAPClientError as error:
        raise _refused(error, challenges, oauth2=True) from error


def _with_password(imap4: Imap4, user: str, password: str) -> None:
    plain, disabled = "AUTH=PLAIN" in imap4.capabilities, "LOGINDISABLED" in imap4.capabilities
    if disabled and not plain:
        raise _not_offered(imap4, "passwords on this connection (LOGINDISABLED)", USE_TLS)
    ascii_only = user.isascii() and password.isascii()
    ways = [imap4.log_in_plain] if plain else []
    if not disabled:
        ways.insert(0 if ascii_only else len(ways), imap4.log_in)
    for number, way in enumerate(ways, 1):
        try:
            way(user, password)
        except IMAPClientError as error:
            refused = _refused(error, [], oauth2=False)
            if number == len(ways) or not isinstance(refused, IMAPCommandRefused):  # only a BAD has not looked at it
                raise refused from error
        else:
            return


def _refused(error: IMAPClientError, challenges: list[bytes], *, oauth2: bool) -> EmailIngestionError:
    return translate_login(error, challenges, oauth2=oauth2, broke_off=isinstance(error, IMAPClientAbortError))


def _not_offered(imap4: Imap4, what: str, remedy: str) -> AuthenticationFailed:
    offered = [each for each in imap4.capabilities if each.startswith(("AUTH=", "LOGIN", "STARTTLS", "SASL"))]
    error = AuthenticationFailed(f"the mail server takes no {what}: {quote_server(' '.join(['CAPABILITY', *offered]))}")
    error.remedy = remedy
    return error
