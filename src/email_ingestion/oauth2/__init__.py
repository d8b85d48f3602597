"""Access tokens for a mailbox: the consent behind them, the token endpoint and the token file.

It knows no IMAP: `mailbox` takes a token as text.
"""

from email_ingestion.oauth2.token_source import AccessToken, TokenSource, TokenStatus

__all__ = ["AccessToken", "TokenSource", "TokenStatus"]
