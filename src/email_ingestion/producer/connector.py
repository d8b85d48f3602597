"""Connects one account: gets a token, logs in, and refreshes the token once when the server refuses it."""

from __future__ import annotations

import time
from collections.abc import Callable

from email_ingestion.breaker import Breaker
from email_ingestion.events import Connected, Observe
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.mailbox.imap_errors import TokenRejected
from email_ingestion.oauth2.token_refresher import TokenRefresher
from email_ingestion.settings import Account

TOKEN_LIFE_SHARE = 0.95  # of the rest of a token's life: Gmail ends the session with the token, so we end it before


class Connector:
    """Opens connections of one account through the circuit breaker."""

    def __init__(
        self,
        account: Account,
        timeout: float,
        *,
        tokens: TokenRefresher | None,
        imap_breaker: Breaker,
        on_login: Callable[[], None],
        credentials_version: Callable[[], object],
        observe: Observe,
    ) -> None:
        """`on_login` is called before each login; `credentials_version` tells whether password or consent changed."""
        self._account = account
        self._timeout = timeout
        self._tokens = tokens
        self._imap = imap_breaker
        self._on_login = on_login
        self.credentials_version = credentials_version
        self._observe = observe
        self._refused: str | None = None  # the token that the server did not take last

    def connect(self) -> ImapMailbox:
        """Return a logged-in connection; raises as `ImapMailbox.login` and `TokenRefresher.get` do."""
        refused = self._refused
        token = self._tokens.get(rejected=refused) if self._tokens else None
        try:
            return self._imap.run(lambda: self._login(token))
        except TokenRejected:
            if not self._tokens or refused:  # it was a fresh one: one login is enough
                raise
            # Expired early or revoked: one forced refresh tells which.
            refreshed = self._tokens.get(rejected=token)
            return self._imap.run(lambda: self._login(refreshed))

    def session_seconds(self, maximum: float) -> float:
        """Return how long a session that begins now should last: at most `maximum` seconds, and less than the token."""
        left = self._tokens.expires_at - time.time() if self._tokens else 0.0
        return min(maximum, TOKEN_LIFE_SHARE * left) if left > 0 else maximum

    def _login(self, token: str | None) -> ImapMailbox:
        connection = ImapMailbox(self._account, self._timeout)
        try:
            self._on_login()
            connection.login(token)
        except TokenRejected:
            self._refused = token
            connection.close()
            raise
        except BaseException:
            connection.close()
            raise
        self._refused = None
        self._observe(Connected(self._account.name))
        return connection
