"""How a watcher gets a connection: a token, a login, and one forced refresh when the token is refused."""

from __future__ import annotations

import time

from email_ingestion.breaker import Breaker
from email_ingestion.events import Connected, Observe
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.mailbox.imap_errors import TokenRejected
from email_ingestion.producer.tokens import Tokens
from email_ingestion.settings import Account

LIFE_SHARE = 0.95  # of what is left of a token: Gmail ends the session with it, so we end it before


class Connector:
    """Connects one account, through the breaker."""

    def __init__(
        self,
        account: Account,
        timeout: float,
        *,
        tokens: Tokens | None,
        imap_breaker: Breaker,
        observe: Observe,
    ) -> None:
        self._account = account
        self._timeout = timeout
        self._tokens = tokens
        self._imap = imap_breaker
        self._observe = observe

    def connect(self) -> ImapMailbox:
        """A logged-in connection; raises what `ImapMailbox.login` and `Tokens.get` do."""
        token = self._tokens.get() if self._tokens else None
        try:
            return self._imap.run(lambda: self._login(token))
        except TokenRejected:
            if not self._tokens:
                raise
            # Expired early or revoked: one forced refresh tells which.
            fresh = self._tokens.get(rejected=token)
            return self._imap.run(lambda: self._login(fresh))

    def life(self, longest: float) -> float:
        """Seconds a session that begins now should last, at most `longest`."""
        left = self._tokens.expires_at - time.time() if self._tokens else 0.0
        return min(longest, LIFE_SHARE * left) if left > 0 else longest

    def _login(self, token: str | None) -> ImapMailbox:
        connection = ImapMailbox(self._account, self._timeout)
        try:
            connection.login(token)
        except BaseException:
            connection.close()
            raise
        self._observe(Connected(self._account.name))
        return connection
