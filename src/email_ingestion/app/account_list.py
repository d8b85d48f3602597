"""All accounts: those of the settings, and those of the database beside them; nothing here logs in anywhere.

A row that is wrong hides no other account: it is `broken`, with the reason. A name that stands in both places means the
account of the settings. An account of the database takes whatever it does not say itself from the general settings, but
never a password: that was meant for another mailbox.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from email_ingestion.app.account import check_account
from email_ingestion.encryption import cipher_of
from email_ingestion.errors import ConfigurationError, OAuth2AuthenticationError
from email_ingestion.oauth2.token_file import Consent, TokenFile, consent_text, parse_consent
from email_ingestion.settings import Account, Settings

if TYPE_CHECKING:
    from email_ingestion.ledger.accounts import AccountRow
    from email_ingestion.ledger.store import Ledger

TOKENS = Path("data/accounts")
SECRETS = ("imap_password", "google_client_secret")
# What a row cannot say: its name is a column, and files and keys are this machine's.
RESERVED = frozenset({"name", "google_token_file", "token_encryption_key", *SECRETS})
SETTINGS = tuple(sorted(Account.model_fields.keys() - RESERVED))


@dataclass(frozen=True, slots=True)
class AccountList:
    """The accounts to read; what is paused, wrong or hidden by the settings; which of all stand in the database."""

    accounts: tuple[Account, ...]
    paused: tuple[Account, ...] = ()
    broken: Mapping[str, str] = field(default_factory=dict)  # by name: why
    hidden: tuple[str, ...] = ()
    stored: Mapping[str, AccountRow] = field(default_factory=dict)

    @property
    def known(self) -> tuple[Account, ...]:
        """All accounts that can be used, the paused ones too."""
        return self.accounts + self.paused


def configured_accounts(settings: Settings, ledger: Ledger) -> tuple[Account, ...]:
    """Return all accounts that can be used, the paused ones too.

    Where there is none, the general settings stand for one, which says what it lacks. Raises ConfigurationError, and
    SinkUnavailable when the database cannot be asked.
    """
    return merge_accounts(settings, ledger.accounts.rows()).known or settings.all_accounts


def accounts_in_files(settings: Settings) -> tuple[Account, ...]:
    """Return the accounts of the settings; none where they name no mailbox at all. Raises ConfigurationError."""
    return settings.all_accounts if settings.accounts or settings.imap_user else ()


def merge_accounts(settings: Settings, rows: Iterable[AccountRow]) -> AccountList:
    """Return all accounts. Raises ConfigurationError for one of the settings that is wrong."""
    in_files = accounts_in_files(settings)
    names = {account.name for account in in_files}
    active, paused = list(in_files), list[Account]()
    broken: dict[str, str] = {}
    hidden: list[str] = []
    stored: dict[str, AccountRow] = {}
    for row in rows:
        stored[row.name] = row
        if row.name in names:
            hidden.append(row.name)
            continue
        try:
            account = account_of_row(settings, row)
        except ConfigurationError as error:
            broken[row.name] = str(error)
            continue
        (paused if row.state == "paused" else active).append(account)
    return AccountList(tuple(active), tuple(paused), broken, tuple(hidden), stored)


def account_of_row(settings: Settings, row: AccountRow) -> Account:
    """Return the account that a row describes, checked as one of the settings is.

    Raises ConfigurationError, whose text shows no secret.
    """
    where = f"the account {row.name} in the database"
    if row.state not in {"active", "paused"}:
        raise ConfigurationError(f"{where}: its state is neither active nor paused; `email-ingestion accounts resume`")
    table = settings_of(row)
    if wrong := sorted(table.keys() & RESERVED):
        raise ConfigurationError(f"{where}: {wrong[0]} has no place among its settings")
    own = {"imap_password": None, "google_token_file": TOKENS / f"{row.name}.json"}
    if "google_client_id" in table:
        own["google_client_secret"] = None
    account = settings.account_of({**table, **own, **_secrets(settings, row, where), "name": row.name}, where)
    try:
        check_account(account, tokens=False)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from error
    return account


def make_row(
    settings: Settings, name: str, table: Mapping[str, Any], secrets: Mapping[str, str]
) -> tuple[AccountRow, Account]:
    """Return the row of an account and the account that it makes.

    Raises ConfigurationError when a value is wrong, or secrets could be kept in plain text only.
    """
    from email_ingestion.ledger.accounts import ACTIVE, AccountRow  # noqa: PLC0415 - SQLAlchemy: 0.15 s, 13 MB

    row = AccountRow(name, ACTIVE, json.dumps(dict(table)), encrypted_secrets(settings, secrets))
    account = account_of_row(settings, row)
    kept = account.model_dump(mode="json", include=set(table))
    return replace(row, settings=json.dumps(kept)), account


def settings_of(row: AccountRow) -> dict[str, Any]:
    """Return what a row sets. Raises ConfigurationError when it cannot be read."""
    return _object(row.settings, f"the account {row.name} in the database: its settings are no JSON object")


def encrypted_secrets(settings: Settings, secrets: Mapping[str, str]) -> str | None:
    """Return secrets as a row keeps them. Raises ConfigurationError where there is no key for that."""
    kept = {name: value for name, value in secrets.items() if value}
    return cipher_of(settings.token_encryption_key).encrypt(json.dumps(kept)) if kept else None


def secrets_of(settings: Settings, row: AccountRow) -> dict[str, str]:
    """Return the secrets of a row. Raises ConfigurationError when they cannot be read."""
    return _secrets(settings, row, f"the account {row.name} in the database")


def encrypted_consent(account: Account, consent: Consent) -> str:
    """Return a consent as a row keeps it. Raises ConfigurationError where there is no key for that."""
    text = consent_text(consent, account.google_token_uri)
    return cipher_of(account.token_encryption_key).encrypt(text)


def keep_consent(settings: Settings, account: Account, consent: Consent, user: str) -> bool:
    """Keep the consent in the database too, if the account stands there and there is a key; return whether it does.

    Raises ConfigurationError, and SinkUnavailable when the database cannot be asked.
    """
    if account.google_token_file.parent != TOKENS or not settings.token_encryption_key:
        return False
    from email_ingestion.ledger.store import open_ledger  # noqa: PLC0415 - SQLAlchemy: 0.15 s, 13 MB

    with closing(open_ledger(settings.database_url)) as ledger:
        return ledger.accounts.store_consent(account.name, encrypted_consent(account, consent), user)


def adopt_consent(account: Account, row: AccountRow) -> bool:
    """Put the consent of a row into the account's token file on this machine, unless that has it or a later one.

    Return whether it was put there. Raises ConfigurationError when it can be neither read nor written.
    """
    if not row.consent:
        return False
    text = _decrypted(account.token_encryption_key, row.consent, f"the account {row.name} in the database")
    try:
        consent = parse_consent(text)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"the account {row.name} in the database: its consent is unreadable") from error
    file = TokenFile(account)
    with file.locked():
        try:
            known = file.read()
        except OAuth2AuthenticationError:
            known = None
        if known and (known.consented_at or 0.0) >= (consent.consented_at or 0.0):
            return False
        file.write(consent)
    return True


def forget_token(name: str) -> None:
    """Remove the token file that this machine has of an account of the database."""
    for path in (TOKENS / f"{name}.json", TOKENS / f"{name}.json.dead"):
        path.unlink(missing_ok=True)


def look_up_accounts(settings: Settings) -> AccountList:
    """Return all accounts, for a command; no database is made or migrated for it.

    Raises ConfigurationError, and SinkUnavailable when the database cannot be asked.
    """
    from email_ingestion.ledger.accounts import account_rows  # noqa: PLC0415 - SQLAlchemy: 0.15 s, 13 MB

    return merge_accounts(settings, account_rows(settings.database_url))


def _secrets(settings: Settings, row: AccountRow, where: str) -> dict[str, str]:
    if not row.secrets:
        return {}
    text = _decrypted(settings.token_encryption_key, row.secrets, where)
    found = _object(text, f"{where}: its secrets are no JSON object")
    return {name: str(found[name]) for name in SECRETS if found.get(name)}


def _decrypted(keys: str | None, content: str, where: str) -> bytes:
    if not keys:
        raise ConfigurationError(f"{where}: its secrets are encrypted: set TOKEN_ENCRYPTION_KEY")
    try:
        return cipher_of(keys).decrypt(content.encode())
    except ValueError as error:
        raise ConfigurationError(
            f"{where}: no key of TOKEN_ENCRYPTION_KEY opens its secrets: add the key they were written with"
        ) from error


def _object(text: str | bytes, otherwise: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ConfigurationError(otherwise)
    return found
