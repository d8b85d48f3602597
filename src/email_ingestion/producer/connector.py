"""Connects one account: gets a token, logs in, and refreshes the token once when the server refuses it.

It knows from one session to the next which optional commands the server hangs up over: they are done without for an
hour. What a server wants told (ALERT), and what it refuses, is announced once.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from email_ingestion.breaker import Breaker
from email_ingestion.events import CommandsRefused, Connected, Observe, ServerAlert
from email_ingestion.mailbox import ImapMailbox
from email_ingestion.mailbox.imap_errors import TokenRejected
from email_ingestion.oauth2.token_refresher import TokenRefresher
from email_ingestion.settings import Account

MAX_HANG_UPS = 2  # over the same optional command, until it is done without
DISTRUST_SECONDS = 3600.0
MAX_ALERTS = 20
ALERT_SECONDS = 3600.0  # until the same alert is announced again: some servers say it at every login
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
        follow_deletions: bool,
        observe: Observe,
    ) -> None:
        """`on_login` is called before each login; `credentials_version` tells whether password or consent changed.

        With `follow_deletions` servers are asked to tell which messages are deleted.
        """
        self._account = account
        self._timeout = timeout
        self._tokens = tokens
        self._imap = imap_breaker
        self._on_login = on_login
        self.credentials_version = credentials_version
        self._follow_deletions = follow_deletions
        self._observe = observe
        self._refused: str | None = None  # the token that the server did not take last
        self._hang_ups: Counter[str] = Counter()
        self._distrusted: dict[str, float] = {}  # command -> until when
        self._told_refused: tuple[str, ...] = ()
        self._told_alerts: dict[str, float] = {}

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
        started = time.monotonic()
        connection = ImapMailbox(self._account, self._timeout)
        for command, until in self._distrusted.items():
            if time.monotonic() < until:
                connection.do_without(command, f"the IMAP server hung up over {command} {MAX_HANG_UPS} times")
        try:
            self._on_login()
            connection.login(token)
            if self._follow_deletions:
                connection.follow_deletions()
        except TokenRejected:
            self._refused = token
            self.report(connection)
            connection.close()
            raise
        except BaseException:
            self.review(connection)
            connection.close()
            raise
        self._refused = None
        self._observe(Connected(self._account.name, time.monotonic() - started))
        return connection

    def report(self, connection: ImapMailbox) -> None:
        """Announce what the server wants told and what it refuses, as far as that is new."""
        for text in connection.take_alerts():
            if time.monotonic() >= self._told_alerts.get(text, 0.0):
                self._told_alerts = dict([*self._told_alerts.items()][-MAX_ALERTS:])
                self._told_alerts[text] = time.monotonic() + ALERT_SECONDS
                self._observe(ServerAlert(self._account.name, text))
        refused = tuple(sorted(connection.refused))
        if refused != self._told_refused:
            self._told_refused = refused
            reasons = "; ".join(dict.fromkeys(connection.refused[command] for command in refused))
            self._observe(CommandsRefused(self._account.name, refused, reasons))

    def review(self, connection: ImapMailbox) -> None:
        """Look back at a session that ended: did the server hang up over a command that it need not have got?"""
        self.report(connection)
        command = connection.attempting
        self._hang_ups = Counter({command: self._hang_ups[command] + 1}) if command else Counter()
        if self._hang_ups[command] >= MAX_HANG_UPS:
            self._distrusted[command] = time.monotonic() + DISTRUST_SECONDS
