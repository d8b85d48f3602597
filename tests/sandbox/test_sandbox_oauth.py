"""Google's endpoints as google-auth and google-auth-oauthlib use them."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import urllib.error
import urllib.parse
import urllib.request

import google.auth.exceptions
import pytest
from google.auth.transport.requests import Request
from google.oauth2.credentials import Credentials
from google_auth_oauthlib.flow import InstalledAppFlow

SCOPE = "https://mail.google.com/"
REDIRECT = "http://127.0.0.1:54321/"


def credentials(sandbox, refresh_token=None, secret="sandbox-secret"):
    return Credentials(
        token=None,
        refresh_token=refresh_token or sandbox.refresh_token(),
        token_uri=sandbox.token_uri,
        client_id="sandbox-client",
        client_secret=secret,
        scopes=[SCOPE],
    )


def refresh(held):
    held.refresh(functools.partial(Request(), timeout=5))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args):
        return None


def location_of(url):
    """Return where a browser would be sent, or the status of a refusal."""
    try:
        urllib.request.build_opener(_NoRedirect).open(url, timeout=5)
    except urllib.error.HTTPError as answer:
        answer.close()
        return answer.headers["Location"] or answer.code


def post(url, fields, headers=None):
    request = urllib.request.Request(url, urllib.parse.urlencode(fields).encode(), headers or {})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code, json.load(answer)


def test_google_auth_refreshes(sandbox, connect):
    held = credentials(sandbox)
    refresh(held)
    assert held.valid
    assert connect(login=False).oauth2_login(sandbox.user, held.token)


def test_consent_flow_with_pkce(sandbox, connect, monkeypatch):
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")
    client = {
        "client_id": "sandbox-client",
        "client_secret": "sandbox-secret",
        "auth_uri": sandbox.auth_uri,
        "token_uri": sandbox.token_uri,
    }
    flow = InstalledAppFlow.from_client_config({"installed": client}, [SCOPE], redirect_uri=REDIRECT)
    url, state = flow.authorization_url(access_type="offline", prompt="consent")
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(location_of(url)).query)
    assert query["state"] == [state]
    flow.fetch_token(code=query["code"][0])
    assert flow.credentials.refresh_token
    assert connect(login=False).oauth2_login(sandbox.user, flow.credentials.token)
    refresh(flow.credentials)
    assert flow.credentials.valid


def authorize(sandbox, **changes):
    fields = {
        "client_id": "sandbox-client",
        "redirect_uri": REDIRECT,
        "response_type": "code",
        "scope": SCOPE,
        "access_type": "offline",
        "state": "s",
    }
    wanted = {name: value for name, value in (fields | changes).items() if value is not None}
    return location_of(f"{sandbox.auth_uri}?{urllib.parse.urlencode(wanted)}")


@pytest.mark.parametrize(
    "change",
    [
        {"client_id": "other"},
        {"redirect_uri": "https://evil.example.org/"},
        {"redirect_uri": "urn:ietf:wg:oauth:2.0:oob"},
        {"scope": None},
        {"response_type": "token"},
        {"access_type": "sometimes"},
    ],
)
def test_bad_authorization_requests_are_not_redirected(sandbox, change):
    assert authorize(sandbox, **change) == 400


def test_code_is_good_once_and_only_with_its_verifier(sandbox):
    verifier = "v" * 50
    digest = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    codes = [
        urllib.parse.parse_qs(
            urllib.parse.urlsplit(
                authorize(sandbox, code_challenge=digest, code_challenge_method="S256", access_type=access)
            ).query
        )["code"][0]
        for access in ("offline", "offline", "online")
    ]
    fields = {
        "grant_type": "authorization_code",
        "redirect_uri": REDIRECT,
        "client_id": "sandbox-client",
        "client_secret": "sandbox-secret",
    }
    wrong = fields | {"code": codes[0], "code_verifier": "w" * 50}
    right = fields | {"code": codes[1], "code_verifier": verifier}
    online = fields | {"code": codes[2], "code_verifier": verifier}
    assert post(sandbox.token_uri, wrong)[1]["error"] == "invalid_grant"
    status, answer = post(sandbox.token_uri, right)
    assert (status, answer["token_type"], answer["expires_in"], answer["scope"]) == (200, "Bearer", 3599, SCOPE)
    assert post(sandbox.token_uri, right)[1]["error"] == "invalid_grant"
    assert "refresh_token" not in post(sandbox.token_uri, online)[1]


def test_wrong_secret_is_invalid_client(sandbox):
    with pytest.raises(google.auth.exceptions.RefreshError) as raised:
        refresh(credentials(sandbox, secret="guess"))
    assert raised.value.args[1]["error"] == "invalid_client"


def test_revoked_token_is_dead_everywhere(sandbox):
    held = credentials(sandbox)
    refresh(held)
    base = f"http://127.0.0.1:{sandbox.oauth_port}"
    assert post(f"{base}/revoke", {"token": held.token})[0] == 200
    assert post(f"{base}/revoke", {"token": held.token})[0] == 400
    with pytest.raises(google.auth.exceptions.RefreshError, match="invalid_grant"):
        refresh(held)


def test_tokens_can_be_looked_up(sandbox):
    base, token = f"http://127.0.0.1:{sandbox.oauth_port}", sandbox.access_token()
    good = {"email": sandbox.user, "active": True, "scope": SCOPE}
    assert post(f"{base}/introspect", {"token": token}) == (200, good)
    assert post(f"{base}/introspect", {"token": "x"}) == (200, {"email": "", "active": False})
    request = urllib.request.Request(f"{base}/userinfo", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        assert json.load(answer) == good


@pytest.mark.parametrize(
    ("fault", "options", "error"),
    [
        ("token_invalid_grant", {}, "invalid_grant"),
        ("token_invalid_grant", {"subtype": "invalid_rapt"}, None),
        ("token_invalid_client", {}, "invalid_client"),
        ("token_502_html", {}, None),
    ],
)
def test_token_faults_reach_google_auth(sandbox, fault, options, error):
    sandbox.arm_fault(fault, **options)
    held = credentials(sandbox)
    with pytest.raises(google.auth.exceptions.RefreshError) as raised:
        refresh(held)
    if error:
        assert raised.value.args[1]["error"] == error
    refresh(held)
    assert held.valid


def test_token_503_is_json(sandbox):
    sandbox.arm_fault("token_503")
    fields = {"grant_type": "refresh_token", "client_id": "sandbox-client", "client_secret": "sandbox-secret"}
    status, answer = post(sandbox.token_uri, fields | {"refresh_token": sandbox.refresh_token()})
    assert status == 503
    assert "error" in answer


def test_token_hang_lasts_until_the_client_gives_up(sandbox):
    sandbox.arm_fault("token_hang")
    held = credentials(sandbox)
    with pytest.raises(google.auth.exceptions.TransportError):
        held.refresh(functools.partial(Request(), timeout=0.2))
    refresh(held)
    assert held.valid


def test_rotation_replaces_the_refresh_token(sandbox):
    sandbox.arm_fault("token_rotate")
    old = sandbox.refresh_token()
    held = credentials(sandbox, old)
    refresh(held)
    assert held.refresh_token != old
    with pytest.raises(google.auth.exceptions.RefreshError):
        refresh(credentials(sandbox, old))


def test_wrong_scope_grant_does_not_open_imap(sandbox, connect):
    sandbox.arm_fault("token_wrong_scope")
    fields = {"grant_type": "refresh_token", "client_id": "sandbox-client", "client_secret": "sandbox-secret"}
    _, answer = post(sandbox.token_uri, fields | {"refresh_token": sandbox.refresh_token()})
    assert answer["scope"] == "https://www.googleapis.com/auth/gmail.readonly"
    with pytest.raises(Exception, match="Lookup failed"):
        connect(login=False).oauth2_login(sandbox.user, answer["access_token"])
