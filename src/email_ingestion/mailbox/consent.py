"""The interactive OAuth2 authorization: loopback redirect with PKCE, or a pasted redirect URL on a headless box.

RFC 8252 (native apps) and RFC 7636 (PKCE). Out-of-band codes are gone, and the device flow refuses Gmail's scope.
"""

from __future__ import annotations

import secrets
import webbrowser
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from google_auth_oauthlib.flow import InstalledAppFlow

from email_ingestion.errors import ConfigurationError, OAuth2AuthenticationError
from email_ingestion.mailbox.oauth2 import SCOPE, store
from email_ingestion.settings import Account, allow_plain_oauth

CONSENT_SECONDS = 600
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def authorize(account: Account, say: Callable[[str], None], ask: Callable[[str], str] | None) -> None:
    """Get the account's consent and write its token file.

    With `ask` the URL is printed and the redirect URL is asked for; without it a browser and a loopback server do it.
    Raises ConfigurationError without a client, OAuth2AuthenticationError when the consent is refused or too small.
    """
    flow = _flow(account)
    answer = _pasted(flow, say, ask) if ask else _listened(flow, say)
    try:
        flow.fetch_token(code=answer)
    except Exception as error:  # oauthlib and requests raise a dozen unrelated types here
        raise OAuth2AuthenticationError(f"the authorization code was refused: {error}") from error
    credentials = flow.credentials
    if SCOPE not in (credentials.granted_scopes or credentials.scopes or ()):
        raise OAuth2AuthenticationError(f"the consent lacks {SCOPE}: tick the box for Gmail and try again")
    if not credentials.refresh_token:
        raise OAuth2AuthenticationError("Google gave no refresh token: remove the app's access in your account first")
    store(account.google_token_file, credentials)
    say(f"Authorized; the token is in {account.google_token_file}.")


def _flow(account: Account) -> Any:
    if not account.google_client_id or not account.google_client_secret:
        raise ConfigurationError(
            "set GOOGLE_CLIENT_ID and GOOGLE_CLIENT_SECRET in .env: "
            "make a client of type 'Desktop app' in your Google Cloud project"
        )
    client = {
        "client_id": account.google_client_id,
        "client_secret": account.google_client_secret,
        "auth_uri": account.google_auth_uri,
        "token_uri": account.google_token_uri,
    }
    if urlsplit(account.google_token_uri).hostname in LOOPBACK:
        allow_plain_oauth()  # the sandbox speaks plain HTTP; no real endpoint does
    return InstalledAppFlow.from_client_config({"installed": client}, scopes=[SCOPE], autogenerate_code_verifier=True)


def _url(flow: Any, port: int) -> tuple[str, str]:
    flow.redirect_uri = f"http://127.0.0.1:{port}/"
    # Without prompt=consent a second authorization brings no refresh token.
    url, state = flow.authorization_url(access_type="offline", prompt="consent", state=secrets.token_urlsafe(24))
    return url, state


def _pasted(flow: Any, say: Callable[[str], None], ask: Callable[[str], str]) -> str:
    url, state = _url(flow, 1)  # nobody listens: the browser shows the redirect URL in its address bar
    say("Open this URL in a browser on any machine and give your consent:")
    say(url)
    say("The browser then fails to open a page at 127.0.0.1: that is expected. Copy its whole address.")
    return _code(ask("Address: ").strip(), state)


def _listened(flow: Any, say: Callable[[str], None]) -> str:
    with _Redirect() as server:
        url, state = _url(flow, server.server_port)
        say("Give your consent in the browser that opens now, or at:")
        say(url)
        webbrowser.open(url, new=1)
        return _code(server.wait(), state)


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
