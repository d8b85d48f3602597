"""What servers say decides how long an account stays away and who must act; their own words are shown, and no more."""

from __future__ import annotations

import imaplib
import random

import pytest

from email_ingestion.errors import (
    AuthenticationFailed,
    EmailIngestionError,
    IMAPCommandRefused,
    IMAPConnectionError,
    IMAPLockedOut,
    IMAPThrottledError,
    SessionExpired,
    quote_server,
)
from email_ingestion.mailbox import imap_errors
from email_ingestion.mailbox.imap_errors import (
    MailboxGone,
    TokenRejected,
    WebLoginRequired,
    concerns_messages,
    translate,
    translate_login,
)
from email_ingestion.ops.redaction import describe_error, redact
from email_ingestion.producer.account_backoff import AccountBackoff

THROTTLED = "Request is throttled. Suggested Backoff Time: 92415 milliseconds"
# As imaplib and imapclient raise what a server said, for a command, a login, and a connection that ends.
NO, BAD = "select failed: {}", "EXAMINE command error: BAD [{!r}]"
AT_LOGIN = {
    # Exchange Online
    "AUTHENTICATE failed.": AuthenticationFailed,
    "LOGIN failed.": AuthenticationFailed,
    "LOGIN failed. Account is blocked. Login to your account via a web browser to verify your identity.": (
        WebLoginRequired
    ),
    "User is authenticated but not connected.": IMAPConnectionError,
    "Server Unavailable. 15": IMAPConnectionError,
    'AUTHENTICATE failed. [Error="AuthFailed:LogonDenied-BasicAuthBlocked-"]': AuthenticationFailed,
    THROTTLED: IMAPThrottledError,
    # Gmail
    "[AUTHENTICATIONFAILED] Invalid credentials (Failure)": AuthenticationFailed,
    "[ALERT] Application-specific password required: https://support.google.com/accounts/answer/185833": (
        AuthenticationFailed
    ),
    "[ALERT] Your account is not enabled for IMAP use.": AuthenticationFailed,
    "[ALERT] Too many simultaneous connections. (Failure)": IMAPThrottledError,
    "[OVERQUOTA] Account exceeded command or bandwidth limits. (Failure)": IMAPLockedOut,
    "[WEBALERT https://accounts.google.com/ContinueSignIn?plt=AKgnsb] Web login required.": WebLoginRequired,
    # Dovecot, Cyrus, Courier
    "[UNAVAILABLE] Temporary authentication failure.": IMAPConnectionError,
    "[UNAVAILABLE] Maximum number of connections from user+IP exceeded (mail_max_userip_connections=10)": (
        IMAPThrottledError
    ),
    "[PRIVACYREQUIRED] Plaintext authentication disallowed on non-secure (SSL/TLS) connections.": AuthenticationFailed,
    "[AUTHENTICATIONFAILED] Authentication failed.": AuthenticationFailed,
    "Login failed: authentication failure": AuthenticationFailed,
    "Login failed: can't connect to saslauthd: No such file or directory": IMAPConnectionError,
    "Login failed.": AuthenticationFailed,
    # Yahoo, iCloud, Yandex, mail.ru, Zoho, Netease, QQ, Proton, web.de
    "[LIMIT] LOGIN Rate limit hit": IMAPThrottledError,
    "[UNAVAILABLE] LOGIN Service is temporarily not available": IMAPConnectionError,
    "[UNAVAILABLE] AUTHENTICATE Server error - Please try again later": IMAPConnectionError,
    "[AUTHENTICATIONFAILED] LOGIN invalid credentials or IMAP is disabled sc=cYXlpv732Cg1_0105": AuthenticationFailed,
    "[AUTHENTICATIONFAILED] NEOBHODIM parol prilozheniya / Application password is REQUIRED": AuthenticationFailed,
    "[ALERT] You are yet to enable IMAP for your account. Please contact your administrator": AuthenticationFailed,
    "Login fail. Account is abnormal, service is not open, password is incorrect, login frequency limited, or system is"
    " busy.": AuthenticationFailed,
    "LOGIN ERR.LOGIN.REQCODE": AuthenticationFailed,
    "no such user": AuthenticationFailed,
    "too many login attempts": IMAPThrottledError,
    "authentication failed": AuthenticationFailed,
    # Anybody
    "Login failed, try again later": IMAPConnectionError,
    "Internal server error": IMAPConnectionError,
    "[EXPIRED] Password expired": AuthenticationFailed,
    "[UNAVAILABLE] backend is down": IMAPConnectionError,
    "[INUSE] Mailbox in use": IMAPThrottledError,
    "[CONTACTADMIN] call us": AuthenticationFailed,
    "[AUTHORIZATIONFAILED] no such authorization": AuthenticationFailed,
    "Your account has been suspended": AuthenticationFailed,
    "Account temporarily locked": IMAPThrottledError,
    "[ALERT] IMAP access is available in paid plans only": AuthenticationFailed,
    "no": AuthenticationFailed,
    "": AuthenticationFailed,
    # What passes, and is not about the password
    "System busy!": IMAPConnectionError,  # QQ
    "Server busy": IMAPConnectionError,
    "Could not connect to authentication server": IMAPConnectionError,
    "AUTHENTICATE failed: account.MAINTENANCE_MODE": IMAPConnectionError,  # Zimbra
    "LDAP server is down": IMAPConnectionError,
    "Server is restarting": IMAPConnectionError,
    "Mailbox is already opened by another session": IMAPConnectionError,
    "An unexpected error has occurred": IMAPConnectionError,
    "Quota exceeded": IMAPConnectionError,
    "Bitte versuchen Sie es später erneut": IMAPConnectionError,
    "Veuillez réessayer plus tard": IMAPConnectionError,
    "Сервис временно недоступен": IMAPConnectionError,
    "服务器繁忙": IMAPConnectionError,
    "しばらくしてからもう一度お試しください": IMAPConnectionError,
    "Zu viele Verbindungen": IMAPThrottledError,
    "登录频率过高": IMAPThrottledError,
    "Intrusion prevention active for 192.0.2.1": IMAPThrottledError,  # IceWarp
    "Your IP address has been blocked": IMAPThrottledError,
    "maximum number of concurrent sessions": IMAPThrottledError,
    # What does not, however friendly it is
    "Invalid username or password. Please try again.": AuthenticationFailed,
    "Wrong password, try it again": AuthenticationFailed,
    "[REFERRAL imap://b.example.com/] Specified user is invalid on this server": AuthenticationFailed,
    "Login fail. Please using authorized code to login": AuthenticationFailed,
    "The login is not safe! Please update your mail client": AuthenticationFailed,
    "Access to your account has been temporarily restricted as we suspect it may have been hacked": WebLoginRequired,
    "POP3/IMAP nicht aktiviert": AuthenticationFailed,
}
ELSEWHERE = {
    "User is authenticated but not connected.": IMAPConnectionError,
    THROTTLED: IMAPThrottledError,
    "Session invalidated - AccessTokenExpired": SessionExpired,
    "SELECT Unsafe Login. Please contact kefu@188.com for help": IMAPCommandRefused,
    "[UNAVAILABLE] UID FETCH Server error while fetching messages": IMAPConnectionError,
    "[SERVERBUG] Internal error occurred. Refer to server log for more information.": IMAPConnectionError,
    "[LIMIT] SEARCH Rate limit hit.": IMAPThrottledError,
    "[NONEXISTENT] Unknown Mailbox: x (Failure)": MailboxGone,
    "Mailbox doesn't exist: x": MailboxGone,
    "[NOPERM] Access denied": IMAPCommandRefused,
    "[CONTACTADMIN] damaged": IMAPCommandRefused,
    "[AUTHENTICATIONFAILED] who are you": IMAPConnectionError,
    "Disconnected for inactivity.": SessionExpired,
}


def refused(text: str) -> imaplib.IMAP4.error:
    """A refused LOGIN: imaplib raises the bytes as they came."""
    return imaplib.IMAP4.error(str(text.encode()))


def words_of(error: EmailIngestionError) -> str:
    return str(error).partition('the server says "')[2].partition('"')[0]


@pytest.mark.parametrize("text", AT_LOGIN)
def test_a_refused_login_is_judged_by_its_words(text: str):
    error = translate_login(refused(text), [], oauth2=False)
    assert type(error) is AT_LOGIN[text], error
    assert words_of(error).startswith(text.replace('"', "'")[:60])
    assert "report" not in str(error)


@pytest.mark.parametrize("form", [NO, BAD])
@pytest.mark.parametrize("text", ELSEWHERE)
def test_a_refused_command_is_judged_by_its_words(form: str, text: str):
    given = imaplib.IMAP4.error(form.format(text.encode() if form == BAD else text))
    error = translate(given, "open a mailbox of")
    expected = IMAPCommandRefused if form == BAD and text.startswith("[AUTHENTICATIONFAILED]") else ELSEWHERE[text]
    assert type(error) is expected, error
    assert words_of(error).startswith(text.replace("kefu@188.com", "<address>")[:60])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (THROTTLED, 92.415),
        ("Too many requests, retry after 120 seconds", 120),
        ("Rate limit hit, please try again in 5 minutes", 300),
        ("Too many connections, come back later", imap_errors.CROWDED_SECONDS),
        ("Request is throttled. Suggested Backoff Time: 999999999999 milliseconds", imap_errors.CROWDED_SECONDS),
    ],
)
@pytest.mark.parametrize("form", ["NO", "BAD", "BYE", "at the login", "BYE at the login", "in a pipelined FETCH"])
def test_the_time_that_a_server_asks_for_is_kept(text: str, seconds: float, form: str):
    abort = imaplib.IMAP4.abort
    error = {
        "NO": lambda: translate(imaplib.IMAP4.error(NO.format(text)), "search"),
        "BAD": lambda: translate(imaplib.IMAP4.error(BAD.format(text.encode())), "search"),
        "BYE": lambda: translate(abort(f"command: UID => {text}"), "search"),
        "at the login": lambda: translate_login(refused(text), [], oauth2=True),
        "BYE at the login": lambda: translate_login(
            abort(f"command: LOGIN => {text}"), [], oauth2=False, broke_off=True
        ),
        "in a pipelined FETCH": lambda: translate(imaplib.IMAP4.error(f"FETCH command error: NO {text}"), "fetch from"),
    }[form]()
    assert isinstance(error, IMAPThrottledError)
    assert error.retry_after == pytest.approx(seconds)
    backoff = AccountBackoff(random.Random(1))
    waits = [backoff.after(error).seconds for _ in range(4)]
    assert all(wait >= seconds for wait in waits)
    if error.asked:
        assert max(waits) <= seconds + 10  # neither doubled nor rounded up by much


def test_a_throttled_fetch_is_no_fault_of_its_messages():
    assert not concerns_messages(imaplib.IMAP4.error(f"FETCH command error: BAD [{THROTTLED.encode()!r}]"))
    assert not concerns_messages(imaplib.IMAP4.error(f"fetch failed: {THROTTLED}"))


def test_a_connection_that_ends_during_a_login_is_no_refusal_unless_it_says_so():
    abort = imaplib.IMAP4.abort
    assert type(translate_login(abort("command: LOGIN => see you"), [], oauth2=False, broke_off=True)) is (
        IMAPConnectionError
    )
    assert type(translate_login(abort("socket error: EOF"), [], oauth2=False, broke_off=True)) is IMAPConnectionError
    told = abort("command: LOGIN => [AUTHENTICATIONFAILED] no")
    assert isinstance(translate_login(told, [], oauth2=False, broke_off=True), AuthenticationFailed)


def test_an_unknown_bad_is_no_fault_of_ours_and_none_of_the_credentials():
    for error in (
        translate_login(imaplib.IMAP4.error("LOGIN command error: BAD [b'what']"), [], oauth2=False),
        translate(imaplib.IMAP4.error("SEARCH command error: BAD [b'what']"), "search"),
    ):
        assert type(error) is IMAPCommandRefused
        assert words_of(error) == "what"


def test_a_refused_token_is_one_however_it_is_said():
    assert isinstance(translate_login(refused("AUTHENTICATE failed."), [], oauth2=True), TokenRejected)


def test_the_words_of_a_server_are_shown_and_nothing_that_identifies_or_opens_anything():
    said = (
        "Bad password: try again, bob@example.com!\x07\x1b[31m\r\n user=bob@example.com\x01auth=Bearer ya29.abc "
        "dXNlcj1ib2JAZXhhbXBsZS5jb20BYXV0aD1CZWFyZXIgeWEyOQ== AGJvYgBzZWNyZXQ= (see https://example.com/Help/Page-1)"
    )
    shown = redact(quote_server(said))
    assert shown.startswith('the server says "Bad password: try again, <address>')
    for secret in ("bob", "ya29", "dXNl", "AGJv", "\x07", "\x1b", "\n", "\x01"):
        assert secret not in shown
    assert "https://example.com/Help/Page-1" in shown
    assert redact(f"password: hunter2 {shown}").startswith("password: <secret> the server says")
    assert describe_error(IMAPConnectionError(shown)) == f"IMAPConnectionError: {shown}"


def test_at_most_200_characters_of_them_are_shown():
    shown = quote_server("word " * 100).partition('"')[2].rstrip('"')
    assert len(shown) == 200
    assert quote_server(" \r\n") == "the server says nothing more"


@pytest.mark.parametrize("part", ["[A ", "exceed", "a", "a.", "QUJD", "b'", "* BYE ", '"', "wait 1"])
def test_long_words_take_no_hours(part: str):
    text = part * (100_000 // len(part))
    assert len(str(translate(imaplib.IMAP4.error(f"search failed: {text}"), "search"))) < 500
    assert len(str(translate_login(imaplib.IMAP4.error(text), [], oauth2=False))) < 500
