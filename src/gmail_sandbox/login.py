"""Logging in: XOAUTH2 and OAUTHBEARER with their JSON error challenge, LOGIN and PLAIN with an app password."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import NamedTuple

from gmail_sandbox.faults import OVER_QUOTA
from gmail_sandbox.imap_syntax import Node, ParseError, text_of
from gmail_sandbox.session import AFTER_LOGIN, CommandRefused, Session
from gmail_sandbox.tokens import MAIL_SCOPE

_STALE = {"status": "400", "schemes": "Bearer", "scope": MAIL_SCOPE}
_NO_SCOPE = {"status": "invalid_request", "scope": MAIL_SCOPE}
_INVALID = "NO [AUTHENTICATIONFAILED] Invalid credentials (Failure)"
_APP_PASSWORD = (
    "NO [ALERT] Application-specific password required: "  # noqa: S105 (an answer)
    "https://support.google.com/accounts/answer/185833 (Failure)"
)
_WEBALERT = b"* NO [WEBALERT https://accounts.google.com/signin/continue?sarp=1&scc=1&plt=sandbox] Web login required."
_WEB_LOGIN = (
    "NO [ALERT] Please log in via your web browser: https://support.google.com/mail/accounts/answer/78754 (Failure)"
)
_DISABLED = "NO [ALERT] Your account is not enabled for IMAP use. Please visit your Gmail settings page. (Failure)"
_DISABLED_FOR_DOMAIN = (
    "NO [ALERT] IMAP access is disabled for your domain. Please contact your domain administrator. (Failure)"
)
_TOO_MANY = "NO [ALERT] Too many simultaneous connections. (Failure)"
_USER = re.compile(r"(?:^|\x01)user=([^\x01]*)")
_GS2_USER = re.compile(r"^n,a=([^,]*),")
_BEARER = re.compile(r"\x01auth=Bearer ([^\x01]+)(?:\x01|$)", re.IGNORECASE)


class Login(NamedTuple):
    """The user name and the token or password that a client sent."""

    user: str
    secret: str


async def authenticate(session: Session, args: list[Node]) -> str:
    """Run AUTHENTICATE with any of the advertised mechanisms."""
    if not args:
        raise ParseError("AUTHENTICATE needs a mechanism")
    mechanism = text_of(args[0]).upper()
    if mechanism not in (b"XOAUTH2", b"OAUTHBEARER", b"PLAIN"):
        return "NO Unsupported authentication mechanism (Failure)"
    payload = await _payload(session, args)
    if mechanism == b"PLAIN":
        return await _password(session, _plain_claim(payload))
    return await _bearer(session, _bearer_claim(payload, xoauth2=mechanism == b"XOAUTH2"))


async def login(session: Session, args: list[Node]) -> str:
    """Run LOGIN, which Gmail accepts with an app password only."""
    if len(args) != 2:  # noqa: PLR2004
        raise ParseError("LOGIN needs a user and a password")
    user, password = (text_of(arg).decode("utf-8", "replace") for arg in args)
    return await _password(session, Login(user, password))


async def _payload(session: Session, args: list[Node]) -> str:
    """Return the client's first message, requested with an empty challenge when the command did not carry it."""
    encoded = text_of(args[1]) if len(args) > 1 else await _challenge(session, b"")
    if encoded == b"*":
        raise CommandRefused("BAD Authentication cancelled")
    try:
        return base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise CommandRefused(f"BAD Invalid SASL argument. {session.id}") from None


async def _challenge(session: Session, data: bytes) -> bytes:
    await session.connection.send(b"+ " + base64.b64encode(data) + b"\r\n")
    return await session.next_line()


def _bearer_claim(payload: str, *, xoauth2: bool) -> Login:
    user = (_USER if xoauth2 else _GS2_USER).search(payload)
    token = _BEARER.search(payload)
    return Login(user[1] if user else "", token[1] if token else "")


def _plain_claim(payload: str) -> Login:
    parts = payload.split("\0")
    return Login(parts[1], parts[2]) if len(parts) == 3 else Login("", "")  # noqa: PLR2004


async def _bearer(session: Session, claim: Login) -> str:
    backend = session.backend
    token = backend.tokens.find_access(claim.secret)
    if _is_declared_stale(session, token.issued_at if token else 0.0):
        token = None
    lookup = backend.faults.consume("lookup_failed")
    if lookup is not None or backend.faults.consume("wrong_scope") or (token is not None and not token.opens_mail):
        return await _lookup_failed(session, challenge=lookup is None or lookup.is_enabled("challenge"))
    if token is None or claim.user.lower() != token.user.lower():
        await _challenge(session, json.dumps(_STALE, separators=(",", ":")).encode())
        return _refuse(session, _INVALID)
    return await _admit(session, token.expires_at)


def _is_declared_stale(session: Session, issued_at: float) -> bool:
    fault = session.backend.faults.get("stale_token")
    if fault is None or (fault.is_enabled("until_refresh") and issued_at > fault.armed_at):
        return False
    if not fault.is_enabled("until_refresh"):
        session.backend.faults.consume("stale_token")
    return True


async def _lookup_failed(session: Session, *, challenge: bool) -> str:
    if challenge:
        await _challenge(session, json.dumps(_NO_SCOPE, separators=(",", ":")).encode())
    return _refuse(session, f"NO Lookup failed {session.id}")


async def _password(session: Session, claim: Login) -> str:
    backend = session.backend
    accepted = backend.credentials.app_password
    if not accepted or backend.faults.consume("app_password_required"):
        return _refuse(session, _APP_PASSWORD)
    # Google prints app passwords in groups of four; the spaces do not count.
    given = claim.secret.replace(" ", "")
    if claim.user.lower() != backend.account.user.lower() or given != accepted.replace(" ", ""):
        return _refuse(session, _INVALID)
    return await _admit(session, None)


async def _admit(session: Session, expires_at: float | None) -> str:
    """Log an authenticated user in, unless a quota, a fault or the connection limit refuses it."""
    backend = session.backend
    if backend.quota.is_exhausted():
        return _refuse(session, f"NO {OVER_QUOTA} (Failure)")
    disabled = backend.faults.consume("imap_disabled")
    if disabled is not None:
        return _refuse(session, _DISABLED_FOR_DOMAIN if disabled.is_enabled("domain") else _DISABLED)
    if backend.faults.consume("web_login_required"):
        await session.send(_WEBALERT)
        return _refuse(session, _WEB_LOGIN)
    if _exceeds_connection_limit(session):
        return _refuse(session, _TOO_MANY)
    session.mark_authenticated(expires_at)
    await session.send(b"* CAPABILITY " + AFTER_LOGIN)
    return f"OK {session.user} authenticated (Success)"


def _exceeds_connection_limit(session: Session) -> bool:
    backend = session.backend
    fault = backend.faults.get("too_many_connections")
    if fault is not None and fault.options["limit"] is not None:
        return session.registry.count_authenticated() >= fault.get_number("limit")
    if fault is not None:
        return backend.faults.consume("too_many_connections") is not None
    return session.registry.count_authenticated() >= backend.credentials.connection_limit


def _refuse(session: Session, answer: str) -> str:
    session.backend.stats.logins_refused += 1
    return answer
