"""Checks of one account: the OAuth2 client, the token, the way to the server, the login, the mailbox."""

from __future__ import annotations

import base64
import binascii
import re
import socket
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

import httpx

from email_ingestion.app.account import log_in
from email_ingestion.doctor.findings import Finding, Findings
from email_ingestion.doctor.network_checks import RESTART_SANDBOX, SECONDS, check_connection, server_time
from email_ingestion.doctor.redis_checks import check_clock
from email_ingestion.errors import EmailIngestionError, IMAPThrottledError, OAuth2AuthenticationError
from email_ingestion.http_requests import ask
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.oauth2 import AccessToken, TokenSource
from email_ingestion.oauth2.consent import authorization_url
from email_ingestion.settings import SANDBOX_PROFILE, Account, Settings, is_loopback

DAY = 86_400.0
WARN_DAYS = 3
SETUP = "python producer.py --auth-setup"

# By a part of the error's text: the cause in the operator's words, and what to do.
LOGIN_CAUSES: tuple[tuple[str, str, str], ...] = (
    (r"scope or user", "", f"check that IMAP_USER is the account that gave its consent, then {SETUP}"),
    (
        r"is hidden",
        "the mailbox of all mail (\\All) is hidden from IMAP",
        "Gmail > Settings > Labels > All Mail: tick 'Show in IMAP'; or set IMAP_MAILBOX=INBOX",
    ),
    (r"^IMAP_MAILBOX", "", "set IMAP_MAILBOX to one of those names, or to auto"),
)
TOKEN_CAUSES: tuple[tuple[str, str, str], ...] = (
    (
        r"Testing status",
        "the consent ended after 7 days because the app is in Testing status",
        f"publish the app (Google Auth Platform > Audience > Publish app), then {SETUP}",
    ),
    (
        r"invalid_client|unauthorized_client",
        "Google does not know the OAuth client, or its secret is wrong: GOOGLE_CLIENT_ID, GOOGLE_CLIENT_SECRET",
        "compare both with the Cloud console, Clients; a new consent changes nothing",
    ),
    (
        r"admin_policy_enforced",
        "the Workspace administrator blocks this app",
        "ask for it: Google Admin console > Security > API controls > App access control",
    ),
    (
        r"invalid_grant|invalid_rapt",
        "the consent is gone: it was withdrawn, the password changed, or the app is in Testing status (7 days)",
        f"{SETUP}; publish the app if it is in Testing status",
    ),
    (r"lacks? the scope|scopes lack", "the consent is for another scope than mail", f"{SETUP}, and tick every box"),
)
REFUSED = "redirect_uri_mismatch"


def check_account(account: Account, settings: Settings, clock: Callable[[], float]) -> Findings:
    """Check one account; end at the first failure that makes the other checks pointless."""
    named = f"account {account.name}"
    if not account.imap_user:
        yield Finding(f"{named} settings", "failed", "IMAP_USER is not set", "set it in .env to the mailbox's address")
        return
    way = check_connection(f"{named} server", account.imap_host, account.imap_port, tls=account.imap_tls)
    yield way
    if account.imap_auth == "oauth2":
        token = check_token(account, named)
        yield from _client(account, named, token)
        yield token
        if (there := server_time(account.google_token_uri)) is not None:
            yield check_clock(urlsplit(account.google_token_uri).hostname or "the token endpoint", clock() - there)
        if token.verdict == "failed":
            return
    elif not account.imap_password:
        cause, remedy = "IMAP_PASSWORD is not set", "set it, or IMAP_PASSWORD_FILE; for Gmail an app password"
        yield Finding(f"{named} settings", "failed", cause, remedy)
        return
    if way.verdict != "failed":
        yield from check_login(account, settings, named)


def check_token(account: Account, named: str) -> Finding:
    """Check the token file, and whether the token endpoint still accepts it."""
    check = f"{named} token"
    try:
        source = TokenSource(account)
        known = source.describe()
        if known.state in {"missing", "reauthorize", "client refused"}:
            return _explain(check, known.problem or "there is no token", TOKEN_CAUSES, SETUP)
        token = source.get_token()
    except OAuth2AuthenticationError as error:
        return _explain(check, str(error), TOKEN_CAUSES, SETUP)
    except EmailIngestionError as error:
        remedy = f"curl -sI {account.google_token_uri}; check the network, a proxy (HTTPS_PROXY) and the firewall"
        if SANDBOX_PROFILE.exists() and is_loopback(urlsplit(account.google_token_uri).hostname or ""):
            remedy = RESTART_SANDBOX
        return Finding(check, "failed", str(error), remedy)
    return _judge(check, token, known.consent_ends_at)


def _judge(check: str, token: AccessToken, ends: datetime | None) -> Finding:
    """Judge a token that can be used now, by what is known of the next ones."""
    if token.refresh_error:
        found = _explain(check, str(token.refresh_error), TOKEN_CAUSES, "run this again in a minute")
        until = f"mail is fetched until {datetime.fromtimestamp(token.expires_at, UTC):%H:%M} UTC only: "
        lasting = isinstance(token.refresh_error, OAuth2AuthenticationError)
        return replace(found, verdict="failed" if lasting else "degraded", cause=until + found.cause)
    if ends and ends.timestamp() - time.time() < WARN_DAYS * DAY:
        cause = f"the consent ends {ends:%Y-%m-%d %H:%M} UTC"
        return Finding(check, "degraded", cause, f"{SETUP} before then; an app out of Testing status keeps it")
    if token.save_error:
        cause = f"the token endpoint honours it, but new ones are kept in memory only: {token.save_error}"
        return Finding(check, "degraded", cause, "make the folder writable if the endpoint changes refresh tokens")
    return Finding(check, "ok", "the token endpoint honours it")


def _client(account: Account, named: str, token: Finding) -> Findings:
    """Check the OAuth client, which only a new consent needs."""
    check = f"{named} client"
    verdict = "failed" if token.verdict == "failed" else "degraded"
    if account.google_service_account_file:
        return
    if not account.google_client_id:
        cause = "GOOGLE_CLIENT_ID is not set" + ("" if verdict == "failed" else ": a new consent will need it")
        remedy = "make an OAuth client of type 'Desktop app' in your Google Cloud project and set both values in .env"
        yield Finding(check, "failed" if verdict == "failed" else "degraded", cause, remedy)
    elif verdict == "failed" and account.oauth2_grant == "refresh_token":
        yield check_consent(account, check)
    else:
        yield Finding(check, "ok", "it is set")


def check_consent(account: Account, check: str) -> Finding:
    """Ask the authorization page as a browser would: Google names a wrong client or redirect there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = authorization_url(account, probe.getsockname()[1])
    try:
        answer = ask("GET", url, seconds=2 * SECONDS, silence=SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        cause = f"the authorization page cannot be reached: {type(error).__name__}"
        return Finding(check, "failed", cause, f"curl -sI {account.google_auth_uri}; check the network and any proxy")
    page = answer.content.decode(errors="replace") if answer.status >= HTTPStatus.BAD_REQUEST else ""
    text = f"{_error_in(answer.headers.get('Location', ''))} {page}"
    if REFUSED in text:
        cause = "Google refuses our redirect: the OAuth client is not of type 'Desktop app'"
        remedy = "make a client of type 'Desktop app' (Cloud console > Clients) and set GOOGLE_CLIENT_ID and _SECRET"
        return Finding(check, "failed", cause, remedy)
    if re.search(r"invalid_client|deleted_client", text):
        return _explain(check, "invalid_client", TOKEN_CAUSES, SETUP)
    return Finding(check, "ok", "the authorization page takes its ID; only a token shows whether its secret is right")


def _error_in(location: str) -> str:
    """Decode the text of Google's error page, which the redirect carries in base64."""
    coded = parse_qs(urlsplit(location).query).get("authError", [""])[0]
    try:
        return base64.urlsafe_b64decode(coded + "=" * (-len(coded) % 4)).decode("utf-8", "replace")
    except binascii.Error:
        return ""


def check_login(account: Account, settings: Settings, named: str) -> Findings:
    """Log in, find the mailbox, open it read-only, and try IDLE; pass on what the server wants told."""
    check = f"{named} login"
    try:
        with closing(log_in(account, settings.imap_timeout_seconds)) as connection:
            mailboxes = [connection.examine(connection.find_mailbox(each.imap_mailbox)) for each in account.by_mailbox]
            kind = "Gmail" if connection.is_gmail else "not Gmail: messages are told apart by their SHA-256"
            waiting = _try_idle(connection, settings.imap_poll_seconds)
            alerts, refused = connection.take_alerts(), sorted(connection.refused)
    except EmailIngestionError as error:
        found = _explain(check, str(error), LOGIN_CAUSES, error.remedy or "run this again; if it stays, see its words")
        yield replace(found, verdict="degraded") if isinstance(error, IMAPThrottledError) else found
        return
    exists = sum(each.exists for each in mailboxes)
    yield Finding(check, "ok", "; ".join([f"{exists:,} messages in the mailbox", kind, waiting]))
    if refused:
        yield Finding(f"{named} commands", "ok", f"the server refuses {', '.join(refused)}; it works without")
    for alert in alerts:
        yield Finding(f"{named} alert", "ok", f"the server wants you told (ALERT): {alert}")


def _try_idle(connection: ImapMailbox, poll_seconds: float) -> str:
    """Return how new mail will be noticed."""
    poll = f"new mail is looked for every {poll_seconds:g} s"
    try:
        if connection.can_idle:
            connection.wait(0.0)
    except IMAPThrottledError:
        raise
    except EmailIngestionError as error:
        return f"{poll}, for IDLE fails: {error}"
    return "new mail is announced (IDLE)" if connection.can_idle else f"{poll}, without IDLE"


def _explain(check: str, message: str, causes: tuple[tuple[str, str, str], ...], default_remedy: str) -> Finding:
    for part, cause, remedy in causes:
        if re.search(part, message, re.IGNORECASE):
            return Finding(check, "failed", cause or message, remedy)
    return Finding(check, "failed", message, default_remedy)
