"""The tokens of the read API: made, listed, revoked and checked. Of a token only its SHA-256 is kept.

A token is 256 random bits, so a plain hash is as good as a slow one: nobody can try them.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

from sqlalchemy import select, update

from email_ingestion.identity import MIN_PART, tombstone
from email_ingestion.ledger.engine import Database, database_now
from email_ingestion.ledger.tables import api_tokens

Scope = Literal["read", "operate"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
PREFIX = "ei_"  # by which secret scanners and people know one
_ID_BYTES, _SECRET_BYTES = 6, 32
_COLUMNS = tuple(column for column in api_tokens.c if column.name != "sha256")


@dataclass(frozen=True, slots=True)
class ApiToken:
    """What is known of a token; the token itself is known to who has it only."""

    token_id: str
    scope: Scope
    account: str | None  # None: every account
    created_by: str
    created_at: datetime
    expires_at: datetime | None = None
    revoked_by: str | None = None
    revoked_at: datetime | None = None

    def state(self, now: datetime) -> Literal["valid", "expired", "revoked"]:
        """Return whether it opens anything at `now`."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "valid"


class ApiTokens:
    """The tokens in the database. Threads may share it; every method raises SinkUnavailable when that is down."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self, scope: Scope, created_by: str, account: str | None = None, ttl: timedelta | None = None
    ) -> tuple[str, ApiToken]:
        """Make a token; return it, which is never seen again, and what is kept of it.

        Raises OverflowError when `ttl` leads beyond the calendar.
        """
        text = PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        with self._database.begin() as connection:
            now = database_now(connection)
            made = ApiToken(secrets.token_hex(_ID_BYTES), scope, account, created_by, now, now + ttl if ttl else None)
            values = {name: getattr(made, name) for name in ApiToken.__slots__}
            connection.execute(api_tokens.insert().values(**values, sha256=_hash(text)))
        return text, made

    def find(self, text: str) -> tuple[ApiToken, datetime] | None:
        """Return what a token is, and the time by the database's clock; None for one that was never made."""
        query = select(*_COLUMNS).where(api_tokens.c.sha256 == _hash(text))
        with self._database.connect() as connection:
            row = connection.execute(query).one_or_none()
            return (_token(row), database_now(connection)) if row else None

    def all(self) -> tuple[list[ApiToken], datetime]:
        """Return all tokens, the oldest first, and the time by the database's clock."""
        query = select(*_COLUMNS).order_by(api_tokens.c.created_at, api_tokens.c.token_id)
        with self._database.connect() as connection:
            return [_token(row) for row in connection.execute(query)], database_now(connection)

    def matching(self, part: str) -> list[str]:
        """Return the ids that begin with `part`; none where it is shorter than MIN_PART and no whole id."""
        tokens, _ = self.all()
        return [each.token_id for each in tokens if len(part) >= MIN_PART and each.token_id.startswith(part)]

    def tombstones(self) -> set[str]:
        """Return those of the tokens that were revoked, by which a restored backup does not bring them back."""
        return {_tombstone(each.token_id) for each in self.all()[0] if each.revoked_at}

    def revoke_again(self, tombstones: Collection[str], revoked_by: str) -> int:
        """End the tokens that have one of these tombstones; return how many opened something."""
        return sum(
            self.revoke(each.token_id, revoked_by) for each in self.all()[0] if _tombstone(each.token_id) in tombstones
        )

    def revoke(self, token_id: str, revoked_by: str) -> bool:
        """End a token now and for good; return whether it was not revoked before."""
        with self._database.begin() as connection:
            where = (api_tokens.c.token_id == token_id, api_tokens.c.revoked_at.is_(None))
            change = update(api_tokens).where(*where)
            values = {"revoked_by": revoked_by, "revoked_at": database_now(connection)}
            return connection.execute(change.values(**values)).rowcount > 0


def _tombstone(token_id: str) -> str:
    return tombstone(f"api-token {token_id}")  # no identity has a blank there


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _token(row: Any) -> ApiToken:
    return ApiToken(**row._mapping)  # noqa: SLF001 - the documented name of a row as a mapping
