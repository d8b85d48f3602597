"""Consents that are being given in a browser: each begins in a session, and ends there once, within ten minutes.

With WEB_PUBLIC_URL and a Google client of type Web, Google sends the browser back to us. Otherwise the client may lead
to the loopback of the browser's machine only, where nobody listens, and the person pastes that address here.

A new consent replaces the old one only when the mail server has taken it for the mailbox of the account: whoever is
logged in to another mailbox in that browser gives consent for that one.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from email_ingestion.errors import (
    AuthenticationFailed,
    ConfigurationError,
    IMAPConnectionError,
    OAuth2AuthenticationError,
    OperationFailed,
)
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.oauth2.consent import (
    CONSENT_SECONDS,
    ConsentRequest,
    check_consent_settings,
    is_google,
    loopback,
)
from email_ingestion.oauth2.token_file import Consent, TokenFile
from email_ingestion.settings import Account, Settings

CALLBACK = "/oauth2/callback"
PASTED_PORT = 1  # nobody listens there
LOGIN_SECONDS = 10.0
MAX_PENDING = 200


@dataclass(frozen=True, slots=True)
class ConsentStart:
    """Where the browser has to go, and whether it comes back by itself."""

    url: str
    comes_back: bool


@dataclass(frozen=True, slots=True)
class _Pending:
    account: Account
    session: str
    request: ConsentRequest
    since: float


class ConsentRenewals:
    """Thread-safe; `clock` gives monotonic seconds."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._pending: OrderedDict[str, _Pending] = OrderedDict()  # by state

    def begin(self, account: Account, session: str) -> ConsentStart:
        """Begin to renew the consent of an account, in this session alone.

        Raises ConfigurationError for an account that needs no consent, or without a client.
        """
        client, redirect, comes_back = self._client_of(account)
        check_consent_settings(client)
        request = ConsentRequest(client, redirect)
        with self._lock:
            self._forget_ended()
            self._pending[request.state] = _Pending(client, session, request, self._clock())
            while len(self._pending) > MAX_PENDING:
                self._pending.popitem(last=False)
        return ConsentStart(request.url, comes_back)

    def finish(self, address: str, session: str) -> tuple[Account, Consent]:
        """Take the redirect, prove the consent by a login, and put it into the token file.

        Raises OAuth2AuthenticationError, TokenRefreshError, OperationFailed and ConfigurationError; the consent from
        before is untouched then.
        """
        pending = self._take(address, session)
        consent = pending.request.consent(address)
        prove_consent(pending.account, consent, min(LOGIN_SECONDS, self._settings.imap_timeout_seconds))
        file = TokenFile(pending.account)
        with file.locked():
            file.write(consent)
        return pending.account, consent

    def account_behind(self, address: str) -> str:
        """Return the account whose consent a redirect is about, empty where it is none that is awaited."""
        with self._lock:
            found = self._pending.get(_state_in(address))
            return found.account.name if found else ""

    def _client_of(self, account: Account) -> tuple[Account, str, bool]:
        """Return the account with the client to ask, where that one leads, and whether that is to us."""
        settings = self._settings
        if settings.web_public_url and settings.google_web_client_id and is_google(account):
            web = {
                "google_client_id": settings.google_web_client_id,
                "google_client_secret": settings.google_web_client_secret,
            }
            return account.model_copy(update=web), settings.web_public_url + CALLBACK, True
        return account, loopback(account, PASTED_PORT), False

    def _take(self, address: str, session: str) -> _Pending:
        """Return what a redirect answers; it can be answered no second time."""
        with self._lock:
            self._forget_ended()
            state = _state_in(address)
            found = self._pending.get(state)
            if found is None or not hmac.compare_digest(found.session.encode(), session.encode()):
                minutes = CONSENT_SECONDS // 60
                raise OAuth2AuthenticationError(
                    f"that address belongs to no authorization of this session that was begun in the last {minutes} "
                    "minutes, or was used already: start again"
                )
            return self._pending.pop(state)

    def _forget_ended(self) -> None:
        oldest = self._clock() - CONSENT_SECONDS
        for state in [state for state, each in self._pending.items() if each.since < oldest]:
            del self._pending[state]


def prove_consent(account: Account, consent: Consent, timeout: float) -> None:
    """Log in to the account's mailbox with a new consent.

    Raises OAuth2AuthenticationError when the server does not take it for this mailbox, OperationFailed when it could
    not be asked.
    """
    try:
        with closing(ImapMailbox(account, timeout)) as connection:
            connection.login(consent.token)
    except AuthenticationFailed as error:
        raise OAuth2AuthenticationError(
            f"the mail server does not take this consent for {account.imap_user}: log in as that mailbox in the "
            "browser and give it again; the consent from before was not replaced"
        ) from error
    except IMAPConnectionError as error:
        raise OperationFailed(
            f"the consent could not be proved, so the one from before was not replaced: {error}; authorize again"
        ) from error


def _state_in(address: str) -> str:
    try:
        (state,) = parse_qs(urlsplit(address.strip()).query).get("state", [""])
    except ValueError:  # several, or no address at all
        return ""
    return state


def check_web_client(settings: Settings) -> None:
    """Raise ConfigurationError for a client of type Web that has no secret: Google refuses it."""
    if settings.google_web_client_id and not settings.google_web_client_secret:
        raise ConfigurationError("GOOGLE_WEB_CLIENT_ID needs GOOGLE_WEB_CLIENT_SECRET")
