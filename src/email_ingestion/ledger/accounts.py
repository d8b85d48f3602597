"""The accounts that stand in the database, beside those of config/settings.toml.

What a row means is decided elsewhere (`app.account_list`): here it is text, so that one row which somebody spoilt keeps
nobody from reading the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Text, delete, insert, select, type_coerce, update

from email_ingestion.errors import SinkUnavailable
from email_ingestion.ledger.database_errors import has_no_tables
from email_ingestion.ledger.engine import Database, open_engine
from email_ingestion.ledger.fingerprint import sqlite_path
from email_ingestion.ledger.tables import accounts

ACTIVE: Final = "active"
PAUSED: Final = "paused"
REMOVED: Final = "removed"


@dataclass(frozen=True, slots=True)
class AccountRow:
    """One row as it stands; `secrets` and `consent` are encrypted."""

    name: str
    state: str
    settings: str
    secrets: str | None = None
    consent: str | None = None


class StoredAccounts:
    """The table of accounts; every method raises SinkUnavailable when the database is down."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def rows(self) -> tuple[AccountRow, ...]:
        """Return all accounts by name, without those that were removed."""
        columns = [type_coerce(accounts.c[name], Text) for name in AccountRow.__slots__]
        with self._database.connect() as connection:
            found = connection.execute(select(*columns).where(accounts.c.state != REMOVED)).all()
        return tuple(sorted((_row(*each) for each in found), key=lambda row: row.name))

    def add(self, row: AccountRow, user: str) -> bool:
        """Add an account; False when there is one of its name, which then stays as it is."""
        with self._database.begin() as connection:
            state = connection.execute(select(accounts.c.state).where(accounts.c.name == row.name)).scalar_one_or_none()
            if state not in {None, REMOVED}:
                return False
            connection.execute(delete(accounts).where(accounts.c.name == row.name))
            connection.execute(insert(accounts).values(**_values(row), **_now(user)))
        return True

    def replace(self, row: AccountRow, user: str) -> bool:
        """Replace an account by `row`; False when there is none of its name."""
        return self._update(row.name, user, _values(row))

    def set_state(self, name: str, state: str, user: str) -> bool:
        """Pause an account or let it go on; False when there is none of that name."""
        return self._update(name, user, {"state": state})

    def store_consent(self, name: str, consent: str, user: str) -> bool:
        """Replace the account's consent, which is encrypted; False when there is no such account."""
        return self._update(name, user, {"consent": consent})

    def remove(self, name: str, user: str) -> bool:
        """Remove an account with its secrets; False when there is none of that name."""
        return self._update(name, user, {"state": REMOVED, "settings": "{}", "secrets": None, "consent": None})

    def _update(self, name: str, user: str, values: dict[str, Any]) -> bool:
        with self._database.begin() as connection:
            known = (accounts.c.name == name) & (accounts.c.state != REMOVED)
            return bool(connection.execute(update(accounts).where(known).values(**values, **_now(user))).rowcount)


def _row(*values: Any) -> AccountRow:
    """Make a row of what an SQLite file holds, which need not be text."""
    name, state, settings, *secrets = values
    return AccountRow(*map(_text, (name, state, settings)), *(each and _text(each) for each in secrets))


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _values(row: AccountRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in AccountRow.__slots__}


def _now(user: str) -> dict[str, Any]:
    return {"changed_at": datetime.now(UTC), "changed_by": user}


def account_rows(url: str) -> tuple[AccountRow, ...]:
    """Return the accounts of the database at `url`, which is neither made nor migrated; none where it has no table.

    Raises ConfigurationError, and SinkUnavailable when the database cannot be asked.
    """
    file = sqlite_path(url)
    if file and not file.exists():
        return ()
    engine = open_engine(url)
    try:
        return StoredAccounts(Database(engine)).rows()
    except SinkUnavailable as error:
        if has_no_tables(error):
            return ()
        raise
    finally:
        engine.dispose()
