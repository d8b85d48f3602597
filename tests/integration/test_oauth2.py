"""Tokens against the sandbox's token endpoint: when one is fetched, what is kept, and what each refusal means."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from email_ingestion.breaker import Breaker, BreakerPolicy
from email_ingestion.errors import (
    CircuitBreakerError,
    ConfigurationError,
    OAuth2AuthenticationError,
    TokenRefreshError,
)
from email_ingestion.events import ConsentEnding, TokenRefreshed, TokenRefreshFailed
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.oauth2 import TokenSource
from email_ingestion.oauth2.consent import authorize
from email_ingestion.oauth2.token_file import TokenFile
from email_ingestion.oauth2.token_refresher import TokenRefresher
from email_ingestion.settings import Account
from gmail_sandbox import Credentials, RunningSandbox, SandboxSettings, running_sandbox
from gmail_sandbox.tokens import ServiceAccount
from tests.sandbox.test_sandbox_oauth import location_of
from tests.servers.accounts import consented, of_sandbox
from tests.servers.links import Heard
from tests.servers.processes import token_of

ROBOT = "robot@project.example.com"


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
def sandbox() -> Iterator[RunningSandbox]:
    with running_sandbox() as running:
        yield running


@pytest.fixture
def account(sandbox: RunningSandbox, tmp_path: Path) -> Account:
    return consented(sandbox, tmp_path)


def _asked(sandbox: RunningSandbox) -> int:
    return sandbox.with_stats(lambda stats: stats.token_requests)


def _opens_mail(account: Account, token: str) -> bool:
    with closing(ImapMailbox(account, 10)) as mailbox:
        mailbox.login(token)
        return mailbox.is_gmail


def test_a_token_is_fetched_once_by_however_many_ask(sandbox: RunningSandbox, account: Account):
    source = TokenSource(account)
    with ThreadPoolExecutor(5) as pool:
        tokens = {access.token for access in pool.map(lambda _: source.get_token(), range(5))}
    assert tokens == {TokenSource(account).get_token().token}
    assert _asked(sandbox) == 1
    assert _opens_mail(account, tokens.pop())


def test_a_token_near_its_end_is_replaced_and_used_on_while_that_fails(sandbox: RunningSandbox, account: Account):
    source, file = TokenSource(account), TokenFile(account)
    first = source.get_token()
    file.write(replace(file.read(), expires_at=time.time() + 300))
    sandbox.arm_fault("token_503")
    kept = source.get_token()
    assert (kept.token, type(kept.refresh_error)) == (first.token, TokenRefreshError)
    assert source.get_token().token != first.token


def test_a_dead_consent_is_asked_about_once_until_its_file_changes(sandbox: RunningSandbox, account: Account):
    sandbox.arm_fault("token_invalid_grant", count=None)
    for _ in range(5):
        with pytest.raises(OAuth2AuthenticationError, match=r"invalid_grant.*--auth-setup"):
            TokenSource(account).get_token()
    assert _asked(sandbox) == 1
    assert TokenSource(account).describe().state == "reauthorize"
    sandbox.clear_faults()
    account.google_token_file.write_text(json.dumps(token_of(sandbox)))
    assert TokenSource(account).describe().state == "expired"
    assert TokenSource(account).get_token().token
    assert TokenSource(account).describe().state == "valid"


def test_a_grant_that_lost_the_mail_scope_is_asked_about_once(sandbox: RunningSandbox, account: Account):
    sandbox.arm_fault("token_wrong_scope", count=None)
    for _ in range(3):
        with pytest.raises(OAuth2AuthenticationError, match="scopes lack"):
            TokenSource(account).get_token()
    assert _asked(sandbox) == 1
    assert TokenSource(account).describe().state == "reauthorize"


def test_a_refused_client_is_tried_again_some_minutes_later(sandbox: RunningSandbox, account: Account):
    sandbox.arm_fault("token_invalid_client")
    source = TokenSource(account)
    for _ in range(2):
        with pytest.raises(OAuth2AuthenticationError, match=r"invalid_client.*compare GOOGLE_CLIENT_ID") as refused:
            source.get_token()
        assert "--auth-setup" not in str(refused.value)  # a new consent changes nothing
    assert _asked(sandbox) == 1
    mark = account.google_token_file.with_name("token.json.dead")
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"again": time.time() - 1}))
    assert source.get_token().token
    assert not mark.exists()


def test_a_consent_that_died_after_seven_days_is_told_to_be_of_testing_status(
    sandbox: RunningSandbox, account: Account
):
    file = TokenFile(account)
    file.write(replace(file.read(), consented_at=time.time() - 7 * 86400))
    sandbox.arm_fault("token_invalid_grant")
    with pytest.raises(OAuth2AuthenticationError, match="publish the app"):
        TokenSource(account).get_token()


@pytest.mark.parametrize("fault", ["token_503", "token_502_html", "nobody there"])
def test_what_may_pass_is_told_as_such(sandbox: RunningSandbox, account: Account, fault: str):
    if fault == "nobody there":
        account = account.model_copy(update={"google_token_uri": "http://127.0.0.1:1/token"})
    else:
        sandbox.arm_fault(fault)
    with pytest.raises(TokenRefreshError):
        TokenSource(account).get_token()
    assert TokenSource(account).describe().state == "expired"


def test_failures_open_the_breaker_and_then_nothing_is_asked(sandbox: RunningSandbox, account: Account):
    heard = Heard()
    breaker = Breaker("oauth2", BreakerPolicy(fail_max=2), (TokenRefreshError,), heard)
    tokens = TokenRefresher("default", TokenSource(account), breaker, heard)
    sandbox.arm_fault("token_503", count=None)
    for _ in range(2):
        with pytest.raises(TokenRefreshError):
            tokens.get()
    with pytest.raises(CircuitBreakerError):
        tokens.get()
    assert _asked(sandbox) == 2
    assert [event.permanent for event in heard.of(TokenRefreshFailed)] == [False, False]


def test_the_end_of_a_consent_is_told_days_before(tmp_path: Path):
    with running_sandbox(SandboxSettings(credentials=Credentials(consent_life=2 * 86400))) as testing:
        account, heard = consented(testing, tmp_path), Heard()
        breaker = Breaker("oauth2", BreakerPolicy(), (TokenRefreshError,), heard)
        TokenRefresher("default", TokenSource(account), breaker, heard).get()
        (refreshed,) = heard.of(TokenRefreshed)
        assert 0 < refreshed.consent_ends_at - time.time() <= 2 * 86400
        assert heard.of(ConsentEnding) == [ConsentEnding("default", refreshed.consent_ends_at)]
        assert TokenSource(account).describe().consent_ends_at


def test_where_the_endpoint_does_not_say_the_setting_tells_how_long_a_consent_lasts(
    sandbox: RunningSandbox, account: Account
):
    file, given = TokenFile(account), time.time() - 86400
    file.write(replace(file.read(), consented_at=given))
    assert TokenSource(account).get_token().consent_ends_at is None
    access = TokenSource(account.model_copy(update={"oauth2_consent_days": 7})).get_token()
    assert access.consent_ends_at == pytest.approx(given + 7 * 86400)


def test_a_token_file_is_encrypted_at_its_next_write_and_keys_rotate(sandbox: RunningSandbox, account: Account):
    old, new = (Fernet.generate_key().decode() for _ in range(2))
    path = account.google_token_file

    def held(keys: str | None) -> Account:
        return account.model_copy(update={"token_encryption_key": keys})

    assert b"refresh_token" in path.read_bytes()
    TokenSource(held(old)).get_token()
    assert b"refresh_token" not in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(OAuth2AuthenticationError, match="is encrypted: set TOKEN_ENCRYPTION_KEY"):
        TokenSource(held(None)).get_token()
    with pytest.raises(OAuth2AuthenticationError, match="no key of TOKEN_ENCRYPTION_KEY opens"):
        TokenSource(held(new)).get_token()
    assert TokenSource(held(new)).describe().state == "missing"
    TokenSource(held(f"{new},{old}")).refresh()
    assert TokenSource(held(new)).describe().state == "valid"


def test_a_key_that_is_none_is_a_configuration_error_that_does_not_show_it(account: Account):
    with pytest.raises(ConfigurationError, match="no Fernet key") as caught:
        TokenSource(account.model_copy(update={"token_encryption_key": "hunter2"}))
    assert "hunter2" not in str(caught.value)


def test_a_rotated_refresh_token_is_kept(sandbox: RunningSandbox, account: Account):
    before = TokenFile(account).read().refresh_token
    sandbox.arm_fault("token_rotate")
    TokenSource(account).get_token()
    assert TokenFile(account).read().refresh_token != before
    assert TokenSource(account).refresh()


@pytest.fixture
def robot(key: rsa.RSAPrivateKey, tmp_path: Path) -> Iterator[tuple[RunningSandbox, Account]]:
    public_format = serialization.PublicFormat.SubjectPublicKeyInfo
    public_key = key.public_key().public_bytes(serialization.Encoding.PEM, public_format).decode()
    known = ServiceAccount(ROBOT, public_key)
    path = tmp_path / "robot.json"
    path.write_text(json.dumps(_key_file(key)))
    with running_sandbox(SandboxSettings(credentials=Credentials(service_account=known))) as running:
        yield running, of_sandbox(running, google_client_id=None, google_service_account_file=path)


def _key_file(key: rsa.RSAPrivateKey) -> dict[str, str]:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return {"type": "service_account", "client_email": ROBOT, "private_key_id": "1", "private_key": pem.decode()}


def test_a_service_account_opens_the_mail_of_the_user_it_names(robot: tuple[RunningSandbox, Account]):
    sandbox, account = robot
    source = TokenSource(account)
    assert source.describe().state == "valid"
    assert _opens_mail(account, source.get_token().token)
    assert source.get_token() == source.get_token()
    assert _asked(sandbox) == 1


def test_a_service_account_without_delegation_for_the_user_needs_an_operator(robot: tuple[RunningSandbox, Account]):
    sandbox, account = robot
    source = TokenSource(account.model_copy(update={"imap_user": "bob@example.com"}))
    for _ in range(3):
        with pytest.raises(OAuth2AuthenticationError, match=r"unauthorized_client.*domain-wide delegation"):
            source.get_token()
    assert _asked(sandbox) == 1


def test_another_key_than_the_service_accounts_is_refused(robot: tuple[RunningSandbox, Account]):
    _, account = robot
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert account.google_service_account_file
    account.google_service_account_file.write_text(json.dumps(_key_file(other)))
    with pytest.raises(OAuth2AuthenticationError, match="invalid_grant"):
        TokenSource(account).get_token()


def test_a_wrong_clock_is_no_dead_service_account(robot: tuple[RunningSandbox, Account]):
    sandbox, account = robot
    sandbox.call(lambda s: setattr(s.backend, "clock", lambda: time.time() + 86400))
    with pytest.raises(TokenRefreshError, match="clock"):
        TokenSource(account).get_token()


def test_a_file_that_is_no_service_account_key_is_named(account: Account, tmp_path: Path):
    path = tmp_path / "robot.json"
    path.write_text("{}")
    source = TokenSource(account.model_copy(update={"google_service_account_file": path}))
    assert source.describe().state == "missing"
    with pytest.raises(OAuth2AuthenticationError, match="no service account key"):
        source.get_token()


def test_an_application_gets_tokens_by_its_own_credentials(sandbox: RunningSandbox):
    account = of_sandbox(sandbox, oauth2_grant="client_credentials")
    assert _opens_mail(account, TokenSource(account).get_token().token)
    wrong = account.model_copy(update={"google_client_secret": "guess"})
    with pytest.raises(OAuth2AuthenticationError, match="invalid_client"):
        TokenSource(wrong).get_token()
    with pytest.raises(ConfigurationError, match="GOOGLE_CLIENT_SECRET"):
        TokenSource(account.model_copy(update={"google_client_secret": None}))


def test_a_public_client_sends_no_secret(tmp_path: Path):
    with running_sandbox(SandboxSettings(credentials=Credentials(client_secret=""))) as public:
        account = consented(public, tmp_path, google_client_secret=None)
        file = TokenFile(account)
        file.write(replace(file.read(), client_secret=None))
        assert _opens_mail(account, TokenSource(account).get_token().token)


def test_a_browsers_consent_comes_back_by_loopback_and_a_stray_visitor_ends_nothing(
    sandbox: RunningSandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    account = of_sandbox(sandbox, google_token_file=tmp_path / "token.json")
    browsers = ThreadPoolExecutor(1)

    def browse(url: str, new: int) -> None:
        redirect = parse_qs(urlsplit(url).query)["redirect_uri"][0]

        def visit() -> bytes:
            address = urlsplit(redirect)
            for stray in (
                *("/favicon.ico", "/?code=theirs", "/?error=access_denied", "/?code=theirs&state=guessed"),
                *("/?error=x&state=", "/?code=theirs&state=a&state=b", "/?state=%FF&code=%00", "/" + "a" * 70_000),
            ):
                with pytest.raises(urllib.error.HTTPError) as refused:
                    urllib.request.urlopen(f"{redirect}{stray}", timeout=10)
                refused.value.close()
            # Browsers connect ahead of a request that may never come; the redirect comes on another connection.
            with (
                socket.create_connection((address.hostname, address.port)),
                socket.create_connection((address.hostname, address.port)) as reset,
                urllib.request.urlopen(url, timeout=10) as page,
            ):
                reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return page.read()

        visits.append(browsers.submit(visit))

    visits: list[Future[bytes]] = []
    monkeypatch.setattr(webbrowser, "open", browse)
    authorize(account, lambda _: None, None)
    assert b"close this page" in visits[0].result(10)
    browsers.shutdown()
    assert _opens_mail(account, TokenSource(account).get_token().token)
    assert TokenFile(account).read().consented_at == pytest.approx(time.time(), abs=60)


@pytest.mark.parametrize(
    "body",
    [
        b'{"access_token": "a", "refresh_token": "r", "expires_in": 1e999}',
        b"[" * 100_000,
        b'{"access_token": "' + b"x" * 10_000_000 + b'"}',
    ],
    ids=["endless lifetime", "deep", "large"],
)
def test_an_endpoint_that_answers_a_consent_with_a_bomb_is_an_error_of_ours(
    sandbox: RunningSandbox, tmp_path: Path, body: bytes
):
    class Hostile(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    said: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as endpoint:
        threading.Thread(target=endpoint.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{endpoint.server_port}/token"
        account = of_sandbox(sandbox, google_token_file=tmp_path / "token.json", google_token_uri=uri)
        with pytest.raises(TokenRefreshError):
            authorize(account, said.append, lambda _: location_of(next(each for each in said if "://" in each)))
        endpoint.shutdown()
    assert not (tmp_path / "token.json").exists()


def test_a_consent_without_the_mail_scope_is_not_kept(sandbox: RunningSandbox, tmp_path: Path):
    account, said = of_sandbox(sandbox, google_token_file=tmp_path / "token.json"), []
    sandbox.arm_fault("token_wrong_scope")
    with pytest.raises(OAuth2AuthenticationError, match="the consent lacks https://mail"):
        authorize(account, said.append, lambda _: location_of(next(each for each in said if each.startswith("http"))))
    assert not (tmp_path / "token.json").exists()


@pytest.mark.parametrize("granted", ["openid https://mail.google.com/", "HTTPS://MAIL.GOOGLE.COM/"])
def test_a_consent_whose_scopes_are_named_in_another_way_is_kept(
    sandbox: RunningSandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, granted: str
):
    """Both oauthlib's refusal of changed scopes and its refusal of http are lifted by environment variables only."""
    for name in ("OAUTHLIB_RELAX_TOKEN_SCOPE", "OAUTHLIB_INSECURE_TRANSPORT"):
        monkeypatch.delenv(name, raising=False)
    account, said = of_sandbox(sandbox, google_token_file=tmp_path / "token.json"), []
    sandbox.arm_fault("token_wrong_scope", scope=granted)
    authorize(account, said.append, lambda _: location_of(next(each for each in said if each.startswith("http"))))
    assert TokenFile(account).read().scopes == tuple(granted.split())
    assert not {"OAUTHLIB_RELAX_TOKEN_SCOPE", "OAUTHLIB_INSECURE_TRANSPORT"} & os.environ.keys()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("token_503", TokenRefreshError),
        ("token_502_html", TokenRefreshError),
        ("token_invalid_grant", OAuth2AuthenticationError),
    ],
)
def test_a_code_that_is_not_exchanged_is_told_by_what_to_do(
    sandbox: RunningSandbox, tmp_path: Path, fault: str, error: type[Exception]
):
    account, said = of_sandbox(sandbox, google_token_file=tmp_path / "token.json"), []
    sandbox.arm_fault(fault)
    with pytest.raises(error):
        authorize(account, said.append, lambda _: location_of(next(each for each in said if each.startswith("http"))))
    assert not (tmp_path / "token.json").exists()


def test_what_refreshes_tokens_does_without_requests(account: Account):
    """It is 5 MB that only a consent needs. Measured in a process of its own: this one has imported everything."""
    program = (
        "import sys; from email_ingestion.oauth2 import TokenSource; from email_ingestion.settings import Account; "
        "TokenSource(Account.model_validate_json(sys.stdin.read())).get_token(); print('requests' in sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], input=account.model_dump_json(), capture_output=True, text=True, check=True
    )
    assert shown.stdout == "False\n"
