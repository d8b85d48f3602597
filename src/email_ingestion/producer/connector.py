"""Connects one account: gets a token, logs in, and refreshes the token once when the server refuses it."""

from __future__ import annotations

import time

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
        observe: Observe,
    ) -> None:
        self._account = account
        self._timeout = timeout
        self._tokens = tokens
        self._imap = imap_breaker
        self._observe = observe

    def connect(self) -> ImapMailbox:
        """Return a logged-in connection; raises as `ImapMailbox.login` and `TokenRefresher.get` do."""
        token = self._tokens.get() if self._tokens else None
        try:
            return self._imap.run(lambda: self._login(token))
        except TokenRejected:
            if not self._tokens:
                raise
            # Expired early or revoked: one forced refresh tells which.
            refreshed = self._tokens.get(rejected=token)
            return self._imap.run(lambda: self._login(refreshed))

    def session_seconds(self, maximum: float) -> float:
        """Return how long a session that begins now should last: at most `maximum` seconds, and less than the token."""
        left = self._tokens.expires_at - time.time() if self._tokens else 0.0
        return min(maximum, TOKEN_LIFE_SHARE * left) if left > 0 else maximum

    def consent_version(self) -> int | None:
        """Return the time the token file was written, which changes when a person has renewed the consent."""
        try:
            return self._account.google_token_file.stat().st_mtime_ns
        except OSError:
            return None

    def _login(self, token: str | None) -> ImapMailbox:
        connection = ImapMailbox(self._account, self._timeout)
        try:
            connection.login(token)
        except BaseException:
            connection.close()
            raise
        self._observe(Connected(self._account.name))
        return connection
