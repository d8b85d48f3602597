"""Examine the copy of an SQLite ledger before anything is done with it: a backup may come from anywhere.

A schema is a program: a trigger runs when a migration changes a row, a view in the place of a table is evaluated by
whoever reads that, and a virtual table is code that interprets what the file holds. So all of them must be those that
this release makes; they are compared before a table is read, by a connection that writes nothing and whose schema may
call nothing that has effects. Ordinary tables and indexes of others are left alone: nothing reads them.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from email_ingestion.errors import OperationFailed
from email_ingestion.ledger.fts_schema import ATTACHMENT_FTS_STATEMENTS, FTS_STATEMENTS, UPDATE_FTS_STATEMENTS

_KINDS = {"CREATE TRIGGER ": "trigger", "CREATE VIRTUAL TABLE ": "table"}
_OURS = {
    (kind, " ".join(statement.split()))
    for statements in (FTS_STATEMENTS, ATTACHMENT_FTS_STATEMENTS, UPDATE_FTS_STATEMENTS)
    for statement in statements["sqlite"]
    for beginning, kind in _KINDS.items()
    if statement.startswith(beginning)
}
_SCHEMA = "SELECT type, name, sql FROM sqlite_master WHERE type IN ('table', 'view', 'trigger')"


@contextmanager
def open_examined(path: Path, schema: str | None = None) -> Iterator[sqlite3.Connection]:
    """Yield a connection that only reads, to a copy that is whole and has no code of others, of this `schema`.

    Raises OperationFailed, also for errors of SQLite within the block.
    """
    try:
        with closing(_open_for_reading(path)) as copy:
            _refuse_foreign_code(copy)
            _refuse_damage(copy)
            if schema is not None:
                _refuse_other_schema(copy, schema)
            yield copy
    except sqlite3.Error as error:
        raise OperationFailed(f"the copy of the database cannot be read: {error}") from error


def remove_foreign_code(copy: sqlite3.Connection) -> None:
    """Remove from a copy that was just made what an operator added to the database: it would be refused later."""
    for kind, name, sql in copy.execute(_SCHEMA).fetchall():
        if _is_foreign(kind, name, sql):
            quoted = name.replace('"', '""')
            copy.execute(f'DROP {kind.upper()} IF EXISTS "{quoted}"')


def _open_for_reading(path: Path) -> sqlite3.Connection:
    copy = sqlite3.connect(f"file:{quote(os.fsencode(path))}?immutable=1", uri=True, isolation_level=None, timeout=10)
    copy.execute("PRAGMA trusted_schema=OFF")
    copy.execute("PRAGMA cell_size_check=ON")
    copy.execute("PRAGMA query_only=ON")
    if hasattr(copy, "setconfig"):  # Python 3.12
        copy.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE, True)  # noqa: FBT003 - as it is called
    return copy


def _refuse_foreign_code(copy: sqlite3.Connection) -> None:
    for kind, name, sql in copy.execute(_SCHEMA):
        if _is_foreign(kind, name, sql):
            shown = "".join(each if each.isprintable() else "?" for each in str(name)[:60])
            raise OperationFailed(
                f"the copy of the database has the {kind} {shown!r}, which this release does not make: restore it with "
                "the version that made the backup, and find out who changed it if that refuses it too"
            )


def _is_foreign(kind: str, name: Any, sql: Any) -> bool:
    if not isinstance(name, str) or not isinstance(sql, str):
        return True
    is_plain_table = kind == "table" and sql.startswith("CREATE TABLE ")
    return not is_plain_table and (kind, " ".join(sql.split())) not in _OURS


def _refuse_damage(copy: sqlite3.Connection) -> None:
    (outcome,) = copy.execute("PRAGMA quick_check(1)").fetchone()
    if outcome != "ok":
        raise OperationFailed(f"the copy of the database is damaged: {outcome}")


def _refuse_other_schema(copy: sqlite3.Connection, schema: str) -> None:
    found = [version for (version,) in copy.execute("SELECT version_num FROM alembic_version LIMIT 2")]
    if found != [schema]:
        raise OperationFailed(f"the copy of the database has schema {found}, its manifest says {schema}")
