"""Gets one account's access tokens through the circuit breaker; announces refreshes, failures and ending consent."""

from __future__ import annotations

import time

from email_ingestion.breaker import Breaker
from email_ingestion.errors import AuthenticationFailed, TokenRefreshError
from email_ingestion.events import ConsentEnding, Observe, TokenNotSaved, TokenRefreshed, TokenRefreshFailed
from email_ingestion.oauth2 import TokenSource
from email_ingestion.oauth2.token_source import CONSENT_WARNING_SECONDS, AccessToken


class TokenRefresher:
    """Refreshes tokens for one watcher, in its thread alone."""

    def __init__(self, account: str, source: TokenSource, breaker: Breaker, observe: Observe) -> None:
        self._account = account
        self._source = source
        self._breaker = breaker
        self._observe = observe
        self._expires_at = 0.0

    @property
    def expires_at(self) -> float:
        """When the last token expires, in Unix seconds."""
        return self._expires_at

    def get(self, rejected: str | None = None) -> str:
        """Return an access token, and not the `rejected` one.

        Raises OAuth2AuthenticationError, TokenRefreshError, CircuitBreakerError.
        """
        try:
            token = self._breaker.run(lambda: self._source.get_token(rejected=rejected))
        except (AuthenticationFailed, TokenRefreshError) as error:
            self._observe(TokenRefreshFailed(self._account, error, isinstance(error, AuthenticationFailed)))
            raise
        self._report(token)
        return token.token

    def _report(self, token: AccessToken) -> None:
        if token.refresh_error:
            self._observe(TokenRefreshFailed(self._account, token.refresh_error, permanent=False))
        elif token.expires_at != self._expires_at:
            self._expires_at = token.expires_at
            self._observe(TokenRefreshed(self._account, token.expires_at, token.consent_ends_at))
            if token.save_error:
                self._observe(TokenNotSaved(self._account, token.save_error))
        end = token.consent_ends_at
        if end is not None and end - time.time() < CONSENT_WARNING_SECONDS:
            self._observe(ConsentEnding(self._account, end))
