"""The interactive OAuth2 authorization: loopback redirect with PKCE, or a pasted redirect URL on a headless box.

RFC 8252 (native apps) and RFC 7636 (PKCE). google-auth-oauthlib makes the URL and exchanges the code; the loopback
server and the meaning of errors are ours. Out-of-band codes are gone, and the device flow refuses Gmail's scope.
"""

from __future__ import annotations

import hmac
import json
import time
import webbrowser
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from email_ingestion.background import run_within
from email_ingestion.errors import ConfigurationError, OAuth2AuthenticationError, TokenRefreshError
from email_ingestion.oauth2.token_endpoint import (
    DEADLINE_SECONDS,
    MAX_BYTES,
    TIMEOUT_SECONDS,
    TokenRefused,
    TokenResponse,
    missing_scope,
    parse_response,
    printable_code,
    unreachable,
)
from email_ingestion.oauth2.token_file import DAY, Consent, TokenFile
from email_ingestion.settings import Account, mask_url

if TYPE_CHECKING:
    import requests
    from requests.adapters import HTTPAdapter

CONSENT_SECONDS = 600
LOOK_SECONDS = 0.2  # between two looks whether the redirect has come
SILENCE_SECONDS = 10.0  # of a visitor, who then is left
PIECE_BYTES = 64 * 1024

Echo = Callable[[str], None]
Prompt = Callable[[str], str]


def authorize(account: Account, echo: Echo, prompt: Prompt | None) -> Consent:
    """Get the account's consent, write its token file and return it.

    With `prompt` the URL is printed and the redirect URL is asked for; without it a browser and a loopback server do
    it. Raises ConfigurationError without a client, OAuth2AuthenticationError when the consent is refused or too small,
    TokenRefreshError when the token endpoint fails.
    """
    check_consent_settings(account)
    file = TokenFile(account)
    request, address = _ask_for_redirect(account, echo, prompt) if prompt else _wait_for_redirect(account, echo)
    consent = request.consent(address)
    with file.locked():
        file.write(consent)
    echo(f"Authorized; the token is in {account.google_token_file}.")
    ends_at = consent.expiry(account.oauth2_consent_days)
    if ends_at is not None:
        days = (ends_at - time.time()) / DAY
        echo(f"This consent ends in {days:.1f} days; in Testing status it is 7: publish the app to make it last.")
    return consent


def authorization_url(account: Account, port: int) -> str:
    """Return the page that asks for consent, with a redirect to `port` of this machine: it names a wrong client."""
    return ConsentRequest(account, loopback(account, port)).url


def loopback(account: Account, port: int) -> str:
    """Return the redirect to `port` of this machine: Google takes any there, Microsoft any port of localhost alone."""
    return f"http://{'127.0.0.1' if is_google(account) else 'localhost'}:{port}"


class ConsentRequest:
    """One authorization request: the URL for the browser, and the consent behind the redirect that comes back."""

    def __init__(self, account: Account, redirect: str) -> None:
        """`redirect` is the address that the browser is sent to, which the client must be allowed."""
        from google_auth_oauthlib.flow import Flow  # noqa: PLC0415 - brings requests, which only a consent needs

        client = {
            "client_id": account.google_client_id or "",
            "client_secret": account.google_client_secret or None,  # a public client has none (RFC 8252, section 8.5)
            "auth_uri": _as_https(account.google_auth_uri),
            "token_uri": _as_https(account.google_token_uri),
        }
        google = is_google(account)
        self._account = account
        self._token_uri = account.google_token_uri
        self._flow = Flow.from_client_config({"installed": client}, account.oauth2_scope.split(), redirect_uri=redirect)
        url, self.state = self._flow.authorization_url(
            login_hint=account.imap_user,
            access_type="offline" if google else None,
            # Without prompt=consent a second authorization at Google brings no refresh token.
            prompt="consent" if google else "select_account",
        )
        self.url: str = urlsplit(url)._replace(scheme=urlsplit(account.google_auth_uri).scheme).geturl()

    def is_answered_by(self, path: str) -> bool:
        """Whether a redirect to `path` is the answer to this request, and not somebody else's: only it has our state.

        An error has it too (RFC 6749, section 4.1.2.1).
        """
        query = parse_qs(urlsplit(path).query)
        (state, *others) = query.get("state", [""])
        ours = not others and hmac.compare_digest(state.encode(), self.state.encode())
        return ours and bool({"code", "error"} & query.keys())

    def consent(self, address: str) -> Consent:
        """Return the consent behind a redirect URL.

        Raises OAuth2AuthenticationError when the consent was refused, or the URL belongs to another request,
        TokenRefreshError when the token endpoint fails.
        """
        return _checked_consent(self._account, self._exchange(self._code_in(address)))

    def _code_in(self, address: str) -> str:
        query = parse_qs(urlsplit(address).query)
        if "error" in query:
            code = printable_code(query["error"][0]) or "without a reason"
            raise OAuth2AuthenticationError(f"the consent was refused: {code}")
        if "code" not in query:
            raise OAuth2AuthenticationError("that address holds no code: copy the whole address after the consent")
        if query.get("state") != [self.state]:
            raise OAuth2AuthenticationError("that address belongs to another authorization: start again")
        return query["code"][0]

    def _exchange(self, code: str) -> TokenResponse:
        import requests  # noqa: PLC0415 - see above

        parsed: list[TokenResponse] = []

        def parse(response: requests.Response) -> Any:
            """Judge the response by our rules, and leave oauthlib the token alone.

            It raises when the scopes differ from the requested ones, and providers rename, add and leave out scopes.
            """
            parsed.append(parse_response(response.status_code, response.content))
            return SimpleNamespace(text=json.dumps({"access_token": parsed[0].access_token}))

        session = self._flow.oauth2session
        session.register_compliance_hook("access_token_request", _refuse_redirects)
        session.register_compliance_hook("access_token_response", parse)
        session.mount("https://", _bounded_adapter(urlsplit(self._token_uri).scheme))
        try:
            run_within(
                DEADLINE_SECONDS,
                lambda: self._flow.fetch_token(code=code, include_client_id=True, timeout=TIMEOUT_SECONDS),
            )
        except TimeoutError as error:
            raise TokenRefreshError("the token endpoint has not sent its whole answer in time") from error
        except requests.RequestException as error:
            raise unreachable(error) from error
        except TokenRefused as error:
            if error.is_of_client:
                raise ConfigurationError(
                    f"the token endpoint refuses the OAuth2 client ({error}): compare GOOGLE_CLIENT_ID and "
                    "GOOGLE_CLIENT_SECRET with those in the provider's console, then start again"
                ) from error
            raise OAuth2AuthenticationError(f"the authorization code was refused ({error}): start again") from error
        return parsed[0]


def _refuse_redirects(uri: str, headers: Any, options: dict[str, Any]) -> tuple[str, Any, dict[str, Any]]:
    """Do not follow redirects: the form holds secrets."""
    return uri, headers, options | {"allow_redirects": False}


def _as_https(uri: str) -> str:
    """Return the address as oauthlib wants it: it takes https alone, unless for a whole process.

    A token endpoint on this machine (the sandbox) speaks http: `_plain_http_adapter` sends the request there.
    """
    parts = urlsplit(uri)
    if parts.scheme not in {"http", "https"}:
        raise ConfigurationError(f"GOOGLE_AUTH_URI or GOOGLE_TOKEN_URI is no web address: {mask_url(uri)!r}")
    return parts._replace(scheme="https").geturl()


def _bounded_adapter(scheme: str) -> HTTPAdapter:
    """Return an adapter that sends requests by `scheme`, and reads no more of an answer than a token's can have."""
    from requests.adapters import HTTPAdapter  # noqa: PLC0415 - see above

    class BoundedAdapter(HTTPAdapter):
        def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
            request.url = urlsplit(request.url or "")._replace(scheme=scheme).geturl()
            response = super().send(request, *args, **options | {"stream": True})
            content = b""
            for piece in response.iter_content(PIECE_BYTES):
                content += piece
                if len(content) > MAX_BYTES:
                    break
            response.close()
            response._content, response.encoding = content, "utf-8"  # noqa: SLF001 - requests offers no limit
            return response

    return BoundedAdapter()


def check_consent_settings(account: Account) -> None:
    """Raise ConfigurationError for an account that needs no consent, or has no client to ask for one."""
    if account.google_service_account_file or account.oauth2_grant != "refresh_token":
        raise ConfigurationError(
            "this account needs no consent: its tokens come from GOOGLE_SERVICE_ACCOUNT_FILE or OAUTH2_GRANT"
        )
    if not account.google_client_id or (is_google(account) and not account.google_client_secret):
        raise ConfigurationError(
            "set GOOGLE_CLIENT_ID and GOOGLE_CLIENT_SECRET in .env: "
            "make a client of type 'Desktop app' in your Google Cloud project"
        )


def is_google(account: Account) -> bool:
    """Return whether its consent is given to Google."""
    return "mail.google.com" in account.oauth2_scope


def _checked_consent(account: Account, response: TokenResponse) -> Consent:
    missing = missing_scope(account.oauth2_scope, response.scopes)
    if missing:
        raise OAuth2AuthenticationError(f"the consent lacks {missing}: tick its box and try again")
    if not response.refresh_token:
        raise OAuth2AuthenticationError(
            "the consent brought no refresh token: remove the app's access in your account first, "
            "or add offline_access to OAUTH2_SCOPE for Microsoft"
        )
    consent = Consent(
        client_id=account.google_client_id or "",
        client_secret=account.google_client_secret,
        refresh_token=response.refresh_token,
        scopes=response.scopes or tuple(account.oauth2_scope.split()),
        consented_at=time.time(),
    )
    return consent.with_response(response)


def _ask_for_redirect(account: Account, echo: Echo, prompt: Prompt) -> tuple[ConsentRequest, str]:
    """Have a person paste the redirect URL; return the request and that URL."""
    request = ConsentRequest(
        account, loopback(account, 1)
    )  # nobody listens: the browser shows the redirect URL in its address bar
    echo("Open this URL in a browser on any machine and give your consent:")
    echo(request.url)
    echo("The browser then fails to open a page at this machine: that is expected. Copy its whole address.")
    return request, prompt("Address: ").strip()


def _wait_for_redirect(account: Account, echo: Echo) -> tuple[ConsentRequest, str]:
    """Open a browser and wait for its redirect; return the request and that address."""
    with _RedirectServer() as server:
        request = ConsentRequest(account, loopback(account, server.server_port))
        echo("Give your consent in the browser that opens now, or at:")
        echo(request.url)
        webbrowser.open(request.url, new=1)
        return request, server.wait(request.is_answered_by)


class _RedirectServer(ThreadingHTTPServer):
    """Waits for the redirect on a port the system chose; whatever else comes (a favicon, a foreign redirect) gets 404.

    Each visitor has a thread: one that says nothing, as browsers that connect ahead do, holds up nobody.
    """

    daemon_threads = True
    block_on_close = False
    timeout = LOOK_SECONDS

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _RedirectHandler)
        self.is_redirect: Callable[[str], bool] = lambda _: False
        self.path: str | None = None

    def wait(self, is_redirect: Callable[[str], bool]) -> str:
        """Return the path of the redirect, with its query. Raises OAuth2AuthenticationError after CONSENT_SECONDS."""
        self.is_redirect = is_redirect
        end = time.monotonic() + CONSENT_SECONDS
        while self.path is None:
            if time.monotonic() > end:
                minutes = CONSENT_SECONDS // 60
                raise OAuth2AuthenticationError(f"nobody gave consent within {minutes} minutes: start again")
            self.handle_request()
        return self.path

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing of a visitor who hung up."""


class _RedirectHandler(BaseHTTPRequestHandler):
    timeout = SILENCE_SECONDS

    def do_GET(self) -> None:
        server = self.server
        redirect = isinstance(server, _RedirectServer) and server.is_redirect(self.path)
        try:
            self.send_response(200 if redirect else 404)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.end_headers()
            self.wfile.write(b"Thank you. You can close this page and go back to the terminal.\n" if redirect else b"")
        finally:
            if redirect and isinstance(server, _RedirectServer):
                server.path = self.path  # last: the process may end then

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's signature
        """Log nothing: the query holds the code."""
