"""Translate SQLAlchemy's errors: SinkUnavailable when the database is down, PermanentError when it refuses a value.

The texts contain neither statements nor values: a driver may quote the row it refuses, and mail does not belong in a
log.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError, StatementError

from email_ingestion.errors import ConfigurationError, PermanentError, SinkUnavailable

# SQLSTATE classes that are about the values: data exception, constraint violation, program limit exceeded.
_VALUE_SQLSTATES = ("22", "23", "54")
_UNDEFINED_TABLE = "42P01"
_QUERY_CANCELED, _INTERRUPTED = "57014", "SQLITE_INTERRUPT"

_SQLITE_ADVICE = {
    "SQLITE_BUSY": "another process keeps it locked; look for a backup or an open sqlite3 shell",
    "SQLITE_FULL": "its disk is full; make room",
    "SQLITE_READONLY": "it is not writable; mend the permissions of the file and its directory, or the disk if that "
    "has become read-only (dmesg)",
    "SQLITE_CANTOPEN": "it cannot be opened; mend the permissions of the file and its directory, or the disk if that "
    "has become read-only (dmesg)",
    "SQLITE_PERM": "it is not accessible; mend the permissions of the file and its directory",
    "SQLITE_IOERR": "its disk answers with an error; look into the system's log",
    "SQLITE_CORRUPT": "it is damaged; restore a backup",
    "SQLITE_NOTADB": "it is not an SQLite database; mend DATABASE_URL",
}
_SQLITE_CONFIGURATION_CODES = ("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_NOTADB")


@contextmanager
def translate_errors(database: str) -> Iterator[None]:
    """Raise PermanentError when the database refuses a value, SinkUnavailable for its other errors."""
    try:
        yield
    except SQLAlchemyError as error:
        if _is_about_values(error):
            # Not `from error`: its text may quote the message.
            raise PermanentError(f"the database refuses this message: {_reason(error)}") from None
        raise SinkUnavailable(f"the database {database} takes nothing: {_reason(error)}") from error
    except (UnicodeError, OverflowError) as error:  # raised by a driver before it asks the database
        raise PermanentError(f"the database refuses this message: {type(error).__name__}") from None


@contextmanager
def translate_open_errors(database: str) -> Iterator[None]:
    """Raise ConfigurationError when an operator must fix a setting, SinkUnavailable for other errors."""
    try:
        yield
    except SQLAlchemyError as error:
        if _sqlite_code(error) in _SQLITE_CONFIGURATION_CODES:
            raise ConfigurationError(f"the database {database} cannot be used: {_reason(error)}") from error
        hint = "" if _sqlite_code(error) else "; check DATABASE_URL and that the server runs"
        raise SinkUnavailable(f"the database {database} cannot be reached: {_reason(error)}{hint}") from error


def was_interrupted(error: SinkUnavailable) -> bool:
    """Tell whether an error of `translate_errors` is that a query was ended because it took too long."""
    original = getattr(error.__cause__, "orig", None)
    if getattr(original, "sqlite_errorname", ""):
        return bool(original.sqlite_errorname == _INTERRUPTED)  # type: ignore[union-attr]
    return getattr(original, "sqlstate", None) == _QUERY_CANCELED


def has_no_tables(error: SinkUnavailable) -> bool:
    """Tell whether an error of `translate_errors` is that a table is not there."""
    original = getattr(error.__cause__, "orig", None)
    if getattr(original, "sqlite_errorname", ""):
        return str(original).startswith("no such table")
    return getattr(original, "sqlstate", None) == _UNDEFINED_TABLE


def _is_about_values(error: SQLAlchemyError) -> bool:
    if not isinstance(error, DBAPIError):
        return isinstance(error, StatementError)  # a value that could not even be bound
    if isinstance(error, DataError | IntegrityError):
        return True
    return str(getattr(error.orig, "sqlstate", None) or "").startswith(_VALUE_SQLSTATES)


def _sqlite_code(error: SQLAlchemyError) -> str:
    """Return the primary result code by name, such as SQLITE_BUSY; empty when the error is not SQLite's."""
    name = str(getattr(getattr(error, "orig", None), "sqlite_errorname", ""))
    return "_".join(name.split("_")[:2])  # SQLITE_BUSY_SNAPSHOT is SQLITE_BUSY


def _reason(error: SQLAlchemyError) -> str:
    advice = _SQLITE_ADVICE.get(_sqlite_code(error))
    if advice is not None:
        return advice
    original = getattr(error, "orig", None) or error
    primary = getattr(getattr(original, "diag", None), "message_primary", None)  # without the row PostgreSQL quotes
    return str(primary or str(original).partition("\n")[0]).strip()
