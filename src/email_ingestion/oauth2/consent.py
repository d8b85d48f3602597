"""The interactive OAuth2 authorization: loopback redirect with PKCE, or a pasted redirect URL on a headless box.

RFC 8252 (native apps) and RFC 7636 (PKCE). Out-of-band codes are gone, and the device flow refuses Gmail's scope.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from email_ingestion.errors import ConfigurationError, OAuth2AuthenticationError
from email_ingestion.oauth2 import token_endpoint
from email_ingestion.oauth2.token_endpoint import Answer, TokenRefused
from email_ingestion.oauth2.token_file import DAY, Consent
from email_ingestion.oauth2.token_source import client, missing_scope, token_file
from email_ingestion.settings import Account

CONSENT_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Request:
    """One authorization request: where to send the browser, and what proves later that the code is ours."""

    url: str
    redirect: str
    state: str
    verifier: str


def authorize(account: Account, say: Callable[[str], None], ask: Callable[[str], str] | None) -> None:
    """Get the account's consent and write its token file.

    With `ask` the URL is printed and the redirect URL is asked for; without it a browser and a loopback server do it.
    Raises ConfigurationError without a client, OAuth2AuthenticationError when the consent is refused or too small.
    """
    _check(account)
    file = token_file(account)
    request, code = _pasted(account, say, ask) if ask else _listened(account, say)
    answer = _exchange(account, request, code)
    missing = missing_scope(account.oauth2_scope, answer.scopes)
    if missing:
        raise OAuth2AuthenticationError(f"the consent lacks {missing}: tick its box and try again")
    if not answer.refresh_token:
        raise OAuth2AuthenticationError(
            "the consent brought no refresh token: remove the app's access in your account first, "
            "or add offline_access to OAUTH2_SCOPE for Microsoft"
        )
    consent = _consent(account, answer, answer.refresh_token)
    with file.locked():
        file.write(consent, account.google_token_uri)
    say(f"Authorized; the token is in {account.google_token_file}.")
    end = consent.end(account.oauth2_consent_days)
    if end is not None:
        days = (end - time.time()) / DAY
        say(f"This consent ends in {days:.1f} days; in Testing status it is 7: publish the app to make it last.")


def authorization_url(account: Account, port: int) -> str:
    """The page that asks for consent, with a redirect to `port` of this machine: to see what it says of the client."""
    return _request(account, port).url


def _check(account: Account) -> None:
    if account.google_service_account_file or account.oauth2_grant != "refresh_token":
        raise ConfigurationError(
            "this account needs no consent: its tokens come from GOOGLE_SERVICE_ACCOUNT_FILE or OAUTH2_GRANT"
        )
    if not account.google_client_id or (_google(account) and not account.google_client_secret):
        raise ConfigurationError(
            "set GOOGLE_CLIENT_ID and GOOGLE_CLIENT_SECRET in .env: "
            "make a client of type 'Desktop app' in your Google Cloud project"
        )


def _google(account: Account) -> bool:
    return "mail.google.com" in account.oauth2_scope


def _exchange(account: Account, request: Request, code: str) -> Answer:
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": request.redirect}
    try:
        return token_endpoint.ask(
            account.google_token_uri, form | client(account) | {"code_verifier": request.verifier}
        )
    except TokenRefused as error:
        raise OAuth2AuthenticationError(f"the authorization code was refused ({error}): start again") from error


def _consent(account: Account, answer: Answer, refresh_token: str) -> Consent:
    given = Consent(
        client_id=account.google_client_id or "",
        client_secret=account.google_client_secret,
        refresh_token=refresh_token,
        scopes=answer.scopes or tuple(account.oauth2_scope.split()),
        consented_at=time.time(),
    )
    return given.renewed(answer)


def _request(account: Account, port: int) -> Request:
    google = _google(account)
    # Google takes any loopback redirect; Microsoft takes any port of localhost alone.
    redirect = f"http://{'127.0.0.1' if google else 'localhost'}:{port}"
    state, verifier = secrets.token_urlsafe(24), secrets.token_urlsafe(64)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    query = {
        "client_id": account.google_client_id or "",
        "redirect_uri": redirect,
        "response_type": "code",
        "scope": account.oauth2_scope,
        "state": state,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
        "login_hint": account.imap_user,
    }
    # Without prompt=consent a second authorization at Google brings no refresh token.
    query |= {"access_type": "offline", "prompt": "consent"} if google else {"prompt": "select_account"}
    joiner = "&" if urlsplit(account.google_auth_uri).query else "?"
    return Request(f"{account.google_auth_uri}{joiner}{urlencode(query)}", redirect, state, verifier)


def _pasted(account: Account, say: Callable[[str], None], ask: Callable[[str], str]) -> tuple[Request, str]:
    request = _request(account, 1)  # nobody listens: the browser shows the redirect URL in its address bar
    say("Open this URL in a browser on any machine and give your consent:")
    say(request.url)
    say("The browser then fails to open a page at this machine: that is expected. Copy its whole address.")
    return request, _code(ask("Address: ").strip(), request.state)


def _listened(account: Account, say: Callable[[str], None]) -> tuple[Request, str]:
    with _Redirect() as server:
        request = _request(account, server.server_port)
        say("Give your consent in the browser that opens now, or at:")
        say(request.url)
        webbrowser.open(request.url, new=1)
        return request, _code(server.wait(), request.state)


def _code(address: str, state: str) -> str:
    query = parse_qs(urlsplit(address).query)
    if "error" in query:
        raise OAuth2AuthenticationError(f"the consent was refused: {query['error'][0]}")
    if "code" not in query:
        raise OAuth2AuthenticationError("that address holds no code: copy the whole address after the consent")
    if query.get("state") != [state]:
        raise OAuth2AuthenticationError("that address belongs to another authorization: start again")
    return query["code"][0]


class _Redirect(HTTPServer):
    """Waits on a port the system chose for the redirect; anything else that knocks (a favicon) is sent away."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Page)
        self.timeout = CONSENT_SECONDS
        self.path: str | None = None

    def wait(self) -> str:
        while self.path is None:
            self.handle_request()
        return self.path

    def handle_timeout(self) -> None:
        raise OAuth2AuthenticationError(f"nobody gave consent within {CONSENT_SECONDS // 60} minutes: start again")


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        redirect = {"code", "error"} & parse_qs(urlsplit(self.path).query).keys()
        if redirect and isinstance(self.server, _Redirect):
            self.server.path = self.path
        self.send_response(200 if redirect else 404)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.end_headers()
        self.wfile.write(b"Thank you. You can close this page and go back to the terminal.\n" if redirect else b"")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's signature
        """Say nothing: the query holds the code."""
