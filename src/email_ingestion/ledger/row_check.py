"""Examine the rows of a copied ledger: a backup may come from anywhere, and what stands in it becomes file names.

SQLite keeps any value in any column, so each one is compared with the type of its column. Identities, hashes and
references have the forms that stream entries are held to, and JSON has the shape that its readers expect: one row that
they cannot read would stop whoever walks over all mail. PostgreSQL checks types itself when it takes the rows.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import lru_cache, partial
from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Integer, LargeBinary, Text

from email_ingestion.errors import OperationFailed
from email_ingestion.identity import CONTENT_REFERENCE, EMAIL_ID, SHA256
from email_ingestion.ledger.tables import metadata
from email_ingestion.ledger.types import Json, Moment, Unsigned64
from email_ingestion.records import ARRIVAL_YEARS, email_id

_NUMBER = re.compile(r"[0-9]{1,20}", re.ASCII)
_TABLES_OF_MAIL = ("emails", "attachments", "places", "deliveries", "erasure_notices")
_FORMS: dict[str, re.Pattern[str]] = {
    **{f"{table}.email_id": EMAIL_ID for table in _TABLES_OF_MAIL},
    **{f"{table}.sha256": SHA256 for table in ("emails", "attachments", "contents", "erased_contents")},
    "emails.raw_ref": CONTENT_REFERENCE,
    "attachments.content_ref": CONTENT_REFERENCE,
    "deliveries.state": re.compile("waiting|delivered|dead"),
    "erased.tombstone": re.compile(r"[0-9a-f]{32}", re.ASCII),
}
# Which function tells whether a JSON value has the shape that the readers of a column expect.
_SHAPES = {
    **dict.fromkeys(("emails.labels", "emails.flags", "emails.tags", "emails.defects"), "are_words"),
    **dict.fromkeys(("emails.to_addrs", "emails.cc_addrs"), "are_people"),
    "emails.headers": "are_headers",
}


def refuse_foreign_rows(copy: sqlite3.Connection, tables: Iterable[str]) -> None:
    """Raise OperationFailed for the first row of an SQLite copy that no release of ours writes."""
    for name, function in _FUNCTIONS.items():
        copy.create_function(name, -1, partial(_answer, function), deterministic=True)
    for table in tables:
        there = [name for (name,) in copy.execute("SELECT name FROM pragma_table_info(?)", (table,))]
        columns = [column for column in metadata.tables[table].columns if column.name in there]
        conditions = {column.name: _condition(table, column) for column in columns}
        if table == "emails":
            conditions["email_id"] = "is_identity(email_id, account, gm_msgid, sha256)"
        if _has_other_rows(copy, table, conditions.values()):  # one look at each row; only then which column it is
            found = (name for name, each in conditions.items() if _has_other_rows(copy, table, [each]))
            raise _foreign(table, next(found, "a column"))


def checked_dump_rows(table: str, columns: list[str], rows: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the rows of a dump; raise OperationFailed for one whose identity, hash or reference is none of ours."""
    forms = [(n, name, _FORMS[f"{table}.{name}"]) for n, name in enumerate(columns) if f"{table}.{name}" in _FORMS]
    facts = [columns.index(each) for each in ("email_id", "account", "gm_msgid", "sha256")] if table == "emails" else []
    for row in rows:
        values = row.rstrip(b"\n").split(b"\t")
        for n, name, form in forms:
            if n >= len(values) or not form.fullmatch(values[n].decode("utf-8", "replace")):
                raise _foreign(table, name)
        if facts and not _is_identity(*(_dumped(values[n]) for n in facts)):
            raise _foreign(table, "email_id")
        yield row


def _has_other_rows(copy: sqlite3.Connection, table: str, conditions: Iterable[str]) -> bool:
    # A condition on NULL is NULL, and that is no row which fulfils it.
    others = " OR ".join(f"({condition}) IS NOT 1" for condition in conditions)
    return copy.execute(f"SELECT 1 FROM {table} WHERE {others} LIMIT 1").fetchone() is not None  # noqa: S608 - our own names


def _foreign(table: str, column: str) -> OperationFailed:
    return OperationFailed(
        f"the copy of the database is none of ours: a row of {table} has something in {column} that no release writes; "
        "take another backup, and find out who changed this one"
    )


def _condition(table: str, column: Column[Any]) -> str:
    """Return as SQL what a value of the column fulfils."""
    name, place = column.name, f"{table}.{column.name}"
    condition = _of_type(column)
    if place in _FORMS:
        condition = f"has_form('{place}', {name})"
    elif place == "emails.internaldate":
        condition = f"is_moment({name}, {ARRIVAL_YEARS[0]}, {ARRIVAL_YEARS[1]})"
    elif place in _SHAPES:
        condition = f"{_SHAPES[place]}({name})"
    if not column.nullable:
        return condition
    absent = f"{name} = 'null' OR " if isinstance(column.type, Json) else ""
    return f"{name} IS NULL OR {absent}{condition}"


def _of_type(column: Column[Any]) -> str:
    name, kind = column.name, column.type
    if isinstance(kind, Boolean):
        return f"typeof({name}) = 'integer' AND {name} IN (0, 1)"
    if isinstance(kind, (BigInteger, Integer)):
        return f"typeof({name}) = 'integer'"
    if isinstance(kind, LargeBinary):
        return f"typeof({name}) = 'blob'"
    if isinstance(kind, Json):
        return f"json_valid({name})"
    for kinds, function in ((Unsigned64, "is_number"), (Moment, "is_moment"), (Text, "is_text")):
        if isinstance(kind, kinds):
            return f"{function}({name})"
    raise AssertionError(f"nobody knows what {column} may hold")


def _answer(function: Callable[..., bool], *values: Any) -> bool:
    return function(*values)


def _has_form(place: str, value: object) -> bool:
    return isinstance(value, str) and _FORMS[place].fullmatch(value) is not None


def _is_identity(found: object, account: object, gm_msgid: object, sha256: object) -> bool:
    if gm_msgid is not None and not _is_number(gm_msgid):
        return False
    if not isinstance(found, str) or not EMAIL_ID.fullmatch(found):
        return False
    return found == email_id(str(account), None if gm_msgid is None else int(str(gm_msgid)), str(sha256))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, str)) and _NUMBER.fullmatch(str(value)) is not None


def _is_moment(value: object, first: int = 1, last: int = 9999) -> bool:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return False
    return moment is not None and moment.tzinfo is not None and first <= moment.year <= last


def _is_text(value: object) -> bool:
    return isinstance(value, str)  # SQLite fails where the bytes are no UTF-8


@lru_cache(maxsize=1024)
def _are_words(value: object) -> bool:  # cached, for most messages have the same few
    words = _parsed(value)
    return isinstance(words, list) and all(map(_is_encodable, words))


def _are_people(value: object) -> bool:
    people = _parsed(value)
    return isinstance(people, list) and all(
        isinstance(each, dict) and each.keys() == {"name", "addr"} and all(map(_is_encodable, each.values()))
        for each in people
    )


def _are_headers(value: object) -> bool:
    headers = _parsed(value)
    return isinstance(headers, list) and all(
        isinstance(each, list) and len(each) == 2 and all(map(_is_encodable, each))  # noqa: PLR2004 - name and value
        for each in headers
    )


def _parsed(value: object) -> object:
    try:
        return json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        return None


def _is_encodable(value: object) -> bool:
    """Tell whether it is a text without half a character, which JSON can name and no terminal or file takes."""
    try:
        return isinstance(value, str) and bool(value.isascii() or value.encode())
    except UnicodeEncodeError:
        return False


def _dumped(value: bytes) -> str | None:
    return None if value == rb"\N" else value.decode("utf-8", "replace")


_FUNCTIONS: Mapping[str, Callable[..., bool]] = {
    "has_form": _has_form,
    "is_identity": _is_identity,
    "is_number": _is_number,
    "is_moment": _is_moment,
    "is_text": _is_text,
    "are_words": _are_words,
    "are_people": _are_people,
    "are_headers": _are_headers,
}
