"""Google's OAuth endpoints as far as a mail client meets them: consent, token, revocation and introspection.

The authorization page asks nobody: it redirects at once, as if the owner had just agreed.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import unquote_plus, urlencode, urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from gmail_sandbox.http_server import JsonAnswer, create_app, read_form
from gmail_sandbox.tokens import JWT_BEARER, AuthorizationGrant, BadAssertion, read_assertion

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from gmail_sandbox.backend import Backend

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class OAuthError(Exception):
    """An answer of the token endpoint: status, `error`, `error_description`."""

    def __init__(self, status: int, name: str, description: str, **more: str) -> None:
        """Keep the parts of the answer."""
        super().__init__(description)
        self.status = status
        self.body = {"error": name, "error_description": description, **more}


class OAuthEndpoints:
    """Routes requests to the endpoints."""

    def __init__(self, backend: Backend) -> None:
        """Serve the tokens of a backend."""
        self._backend = backend
        self._tokens, self._faults = backend.tokens, backend.faults
        self._credentials = backend.credentials

    def create_app(self) -> Starlette:
        """Return the application that serves the endpoints."""
        routes = [
            Route("/auth", self._authorize),
            Route("/token", self._token, methods=["POST"]),
            Route("/revoke", self._revoke, methods=["POST"]),
            Route("/introspect", self._introspect_form, methods=["POST"]),
            Route("/userinfo", self._introspect_bearer),
        ]
        return create_app(routes, {404: _answer_not_found, 405: _answer_not_found})

    async def _authorize(self, request: Request) -> Response:
        fields = dict(request.query_params)
        error = self._authorization_error(fields)
        if error:
            return HTMLResponse(f"<h1>Error 400: {error}</h1>", 400)
        redirect = fields["redirect_uri"]
        code = self._tokens.issue_code(
            AuthorizationGrant(
                redirect_uri=redirect,
                scope=fields["scope"],
                challenge=fields.get("code_challenge", ""),
                method=fields.get("code_challenge_method", "plain"),
                # Google asks for access_type, OpenID Connect (and Microsoft) for a scope.
                offline=fields.get("access_type") == "offline" or "offline_access" in fields["scope"].split(),
            )
        )
        query = {"state": fields.get("state", ""), "code": code, "scope": fields["scope"]}
        joiner = "&" if urlsplit(redirect).query else "?"
        return Response(status_code=302, headers={"Location": redirect + joiner + urlencode(query)})

    def _authorization_error(self, fields: dict[str, str]) -> str:
        """Return Google's name for the error in an authorization request, or an empty string."""
        redirect = urlsplit(fields.get("redirect_uri", ""))
        checks = (
            (fields.get("client_id") == self._credentials.client_id, "invalid_client: The OAuth client was not found."),
            # Desktop clients may use any loopback port; out-of-band is blocked since 2023.
            (redirect.scheme == "http" and redirect.hostname in _LOOPBACK, "redirect_uri_mismatch"),
            (self._faults.consume("redirect_refused") is None, "redirect_uri_mismatch"),
            (fields.get("response_type") == "code", "invalid_request: response_type must be code"),
            (bool(fields.get("scope")), "invalid_request: Missing required parameter: scope"),
            (
                fields.get("code_challenge_method", "plain") in ("plain", "S256"),
                "invalid_request: code_challenge_method",
            ),
            (fields.get("access_type", "online") in ("online", "offline"), "invalid_request: access_type"),
        )
        return next((error for passed, error in checks if not passed), "")

    async def _token(self, request: Request) -> Response:
        self._backend.stats.token_requests += 1
        form = await read_form(request)
        broken = await self._apply_faults(request)
        if broken is not None:
            self._backend.stats.token_errors += 1
            return broken
        try:
            return JsonAnswer(self._grant(request, form))
        except OAuthError as error:
            self._backend.stats.token_errors += 1
            return JsonAnswer(error.body, error.status)

    async def _apply_faults(self, request: Request) -> Response | None:
        """Let an armed fault answer instead."""
        hang = self._faults.consume("token_hang")
        if hang is not None:
            await _hang(request, None if hang.options["seconds"] is None else hang.get_number("seconds"))
        if self._faults.consume("token_503"):
            return JsonAnswer(
                {"error": "backend_error", "error_description": "The service is currently unavailable."}, 503
            )
        if self._faults.consume("token_502_html"):
            return HTMLResponse("<!DOCTYPE html><title>Error 502 (Server Error)!!1</title>", 502)
        invalid = self._faults.consume("token_invalid_grant")
        if invalid is not None:
            body = {"error": "invalid_grant", "error_description": "Token has been expired or revoked."}
            subtype = {"error_subtype": invalid.get_text("subtype")} if invalid.get_text("subtype") else {}
            return JsonAnswer(body | subtype, 400)
        if self._faults.consume("token_invalid_client"):
            return JsonAnswer({"error": "invalid_client", "error_description": "The OAuth client was not found."}, 401)
        return None

    def _grant(self, request: Request, form: dict[str, str]) -> dict[str, object]:
        if form.get("grant_type") == JWT_BEARER:
            return self._by_assertion(form)
        self._check_client(request, form)
        match form.get("grant_type"):
            case "client_credentials":
                return self._access(self._granted(form.get("scope", "")))
            case "authorization_code":
                return self._by_code(form)
            case "refresh_token":
                return self._by_refresh(form)
            case other:
                raise OAuthError(400, "unsupported_grant_type", f"Invalid grant_type: {other}")

    def _check_client(self, request: Request, form: dict[str, str]) -> None:
        """Check the client by Basic header (code exchange) or body fields (refresh)."""
        given = (form.get("client_id", ""), form.get("client_secret", ""))
        scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic":
            given = _basic(encoded)
        if given[0] != self._credentials.client_id:
            raise OAuthError(401, "invalid_client", "The OAuth client was not found.")
        if not secrets.compare_digest(given[1].encode(), self._credentials.client_secret.encode()):
            raise OAuthError(401, "invalid_client", "The provided client secret is invalid.")

    def _by_code(self, form: dict[str, str]) -> dict[str, object]:
        code = self._tokens.redeem(form.get("code", ""))
        if code is None:
            raise OAuthError(400, "invalid_grant", "Malformed auth code.")
        if form.get("redirect_uri") != code.redirect_uri:
            raise OAuthError(400, "redirect_uri_mismatch", "Bad Request")
        if not code.accepts_verifier(form.get("code_verifier", "")):
            raise OAuthError(400, "invalid_grant", "Invalid code verifier.")
        scope = self._granted(code.scope)
        if not code.offline:
            return self._access(scope)
        refresh = self._tokens.issue_refresh(scope, self._credentials.client_id)
        return self._access(scope, refresh) | {"refresh_token": refresh} | self._remaining_consent(refresh)

    def _by_assertion(self, form: dict[str, str]) -> dict[str, object]:
        """Grant a service account a token for the user it names (RFC 7523)."""
        try:
            claims = read_assertion(form.get("assertion", ""), self._credentials.service_account, self._backend.clock())
        except BadAssertion as bad:
            raise OAuthError(400, "invalid_grant", str(bad)) from bad
        if claims.get("sub") != self._credentials.user:
            raise OAuthError(401, "unauthorized_client", "Client is unauthorized to retrieve access tokens.")
        return self._access(self._granted(str(claims.get("scope", ""))))

    def _remaining_consent(self, refresh_token: str) -> dict[str, object]:
        left = self._tokens.remaining_consent(refresh_token)
        return {} if left is None else {"refresh_token_expires_in": int(left)}

    def _by_refresh(self, form: dict[str, str]) -> dict[str, object]:
        token = form.get("refresh_token", "")
        grant = self._tokens.find_refresh(token)
        if grant is None or grant.client_id != self._credentials.client_id:
            raise OAuthError(400, "invalid_grant", "Token has been expired or revoked.")
        rotated = self._faults.consume("token_rotate")
        if rotated is None:
            return self._access(self._granted(grant.scope), token) | self._remaining_consent(token)
        new_token = self._tokens.issue_refresh(grant.scope, grant.client_id)
        if not rotated.is_enabled("keep_old"):
            self._tokens.drop_refresh(token)
        return (
            self._access(self._granted(grant.scope), new_token)
            | {"refresh_token": new_token}
            | self._remaining_consent(new_token)
        )

    def _granted(self, scope: str) -> str:
        fault = self._faults.consume("token_wrong_scope")
        return scope if fault is None else fault.get_text("scope")

    def _access(self, scope: str, refresh_token: str = "") -> dict[str, object]:
        token, facts = self._tokens.issue_access(scope, refresh_token)
        # Google's first answer is one second short of the full life.
        expires_in = max(int(facts.expires_at - facts.issued_at) - 1, 1)
        return {"access_token": token, "expires_in": expires_in, "scope": scope, "token_type": "Bearer"}

    async def _revoke(self, request: Request) -> Response:
        token = (await read_form(request)).get("token") or request.query_params.get("token", "")
        if not self._tokens.revoke(token):
            return JsonAnswer({"error": "invalid_token", "error_description": "Token expired or revoked"}, 400)
        self._backend.stats.tokens_revoked += 1
        return JsonAnswer({})

    async def _introspect_form(self, request: Request) -> Response:
        return self._introspect((await read_form(request)).get("token", ""))

    async def _introspect_bearer(self, request: Request) -> Response:
        return self._introspect(request.headers.get("authorization", "").removeprefix("Bearer ").strip())

    def _introspect(self, token: str) -> Response:
        """Answer 200 in any case: Dovecot takes another status for an outage, not for a bad token."""
        facts = self._tokens.find_access(token)
        if facts is None:
            return JsonAnswer({"email": "", "active": False})
        return JsonAnswer({"email": facts.user, "active": True, "scope": facts.scope})


def _basic(encoded: str) -> tuple[str, str]:
    try:
        user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise OAuthError(401, "invalid_client", "Malformed Authorization header.") from error
    return unquote_plus(user), unquote_plus(password)


async def _hang(request: Request, seconds: float | None) -> None:
    """Wait for `seconds`, or for ever when it is None; raise ClientDisconnect once the client gives up."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while (await request.receive())["type"] != "http.disconnect":
                pass
            raise ClientDisconnect


async def _answer_not_found(_request: Request, _error: Exception) -> Response:
    return JsonAnswer({"error": "not_found"}, 404)
