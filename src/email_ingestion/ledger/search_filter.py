"""Conditions on delivered mail beside words: who, when, labels, tags, attachments; the same on each database."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, TextClause, bindparam, exists, select, text

from email_ingestion.ledger.tables import attachments, emails
from email_ingestion.ledger.types import Moment

_MAX_TEXT = 1000  # characters of a condition; SQLite refuses patterns of 50,000
_ESCAPE = "!"


@dataclass(frozen=True, slots=True)
class SearchFilter:
    """What a message must be; None and an empty tuple ask for nothing.

    A text is found anywhere in its field, whatever its case and diacritics; with a `*` in it, it is the whole field.
    """

    sender: str | None = None  # a name or an address, as the following
    recipient: str | None = None  # To or Cc
    subject: str | None = None
    after: datetime | None = None  # at this instant or later, by INTERNALDATE
    before: datetime | None = None  # earlier than this instant
    labels: tuple[str, ...] = ()  # all of them, whole; a system label with its backslash or without
    tags: tuple[str, ...] = ()  # all of them, whole
    min_priority: int | None = None
    max_priority: int | None = None
    account: str | None = None  # its configured name
    has_attachment: bool | None = None
    filename: str | None = None  # of an attachment
    list_id: str | None = None
    bounce: bool | None = None
    min_size: int | None = None  # bytes of the raw message, as the following
    max_size: int | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it lets every message pass."""
        return all(getattr(self, field.name) in {None, ()} for field in fields(self))

    def conditions(self, dialect: str) -> Iterator[ColumnElement[bool] | TextClause]:
        """Yield its conditions on `emails`; a connection to SQLite must be prepared with `add_fold` for them."""
        yield from self._of_columns()
        where = _Conditions(dialect)
        if self.sender is not None:
            yield where.contains(("emails.from_name", "emails.from_addr"), self.sender)
        if self.recipient is not None:
            yield where.address(("to_addrs", "cc_addrs"), self.recipient)
        if self.subject is not None:
            yield where.contains(("emails.subject",), self.subject)
        if self.list_id is not None:
            yield where.contains(("emails.list_id",), self.list_id)
        if self.filename is not None:
            yield where.filename(self.filename)
        for label in self.labels:
            yield where.item("labels", (label, f"\\{label}"))
        for tag in self.tags:
            yield where.item("tags", (tag,))

    def _of_columns(self) -> Iterator[ColumnElement[bool]]:
        if self.account is not None:
            yield emails.c.account == self.account
        if self.after is not None:
            yield emails.c.internaldate >= bindparam("after", self.after, Moment)
        if self.before is not None:
            yield emails.c.internaldate < bindparam("before", self.before, Moment)
        if self.min_priority is not None:
            yield emails.c.priority >= self.min_priority
        if self.max_priority is not None:
            yield emails.c.priority <= self.max_priority
        if self.min_size is not None:
            yield emails.c.size >= self.min_size
        if self.max_size is not None:
            yield emails.c.size <= self.max_size
        if self.bounce is not None:
            yield emails.c.bounce.is_(self.bounce)
        if self.has_attachment is not None:
            has = exists(select(1).where(attachments.c.email_id == emails.c.email_id))
            yield has if self.has_attachment else ~has


class _Conditions:
    """Makes conditions that compare texts, in the SQL of one database."""

    def __init__(self, dialect: str) -> None:
        self._dialect = dialect
        self._sqlite = dialect == "sqlite"
        self._count = 0

    def contains(self, columns: tuple[str, ...], wanted: str) -> TextClause:
        return self._text(" OR ".join(self._like(column) for column in columns), like_pattern(wanted))

    def filename(self, wanted: str) -> TextClause:
        sql = (
            "emails.email_id IN (SELECT attachments.email_id FROM attachments"  # noqa: S608 - our own names
            f" WHERE {self._like('attachments.filename')})"
        )
        return self._text(sql, like_pattern(wanted))

    def address(self, columns: tuple[str, ...], wanted: str) -> TextClause:
        names = ("json_extract(item.value, '$.name')", "json_extract(item.value, '$.addr')")
        if not self._sqlite:
            names = ("item.value ->> 'name'", "item.value ->> 'addr'")
        like = " OR ".join(self._like(name) for name in names)
        return self._text(" OR ".join(self._any_item(column, like) for column in columns), like_pattern(wanted))

    def item(self, column: str, wanted: tuple[str, ...]) -> TextClause:
        value = "item.value" if self._sqlite else "item.value #>> '{}'"
        texts = (f":{{name}}_{n}" for n in range(len(wanted)))
        same = " OR ".join(f"{folded(value, self._dialect)} = {folded(each, self._dialect)}" for each in texts)
        return self._text(self._any_item(column, same), *map(_clean, wanted))

    def _any_item(self, column: str, condition: str) -> str:
        if self._sqlite:
            return f"EXISTS (SELECT 1 FROM json_each(emails.{column}) AS item WHERE {condition})"  # noqa: S608 - our own names
        items = f"CASE jsonb_typeof(emails.{column}) WHEN 'array' THEN emails.{column} END"
        return f"EXISTS (SELECT 1 FROM jsonb_array_elements({items}) AS item (value) WHERE {condition})"  # noqa: S608 - our own names

    def _like(self, value: str) -> str:
        return like(value, ":{name}_0", self._dialect)

    def _text(self, sql: str, *values: str) -> TextClause:
        """Bind values to the names that stand in `sql` as :{name}_0 and so on; the names are used nowhere else."""
        self._count += 1
        name = f"filter{self._count}"
        bound = {f"{name}_{n}": value for n, value in enumerate(values)}
        return text(f"({sql.replace('{name}', name)})").bindparams(**bound)


def like(value: str, pattern: str, dialect: str) -> str:
    """Return the SQL of the condition that a text is like the parameter `pattern`, whatever case and diacritics.

    Nearly all texts are plain ASCII, which the database compares by itself, several times as fast.
    """
    if dialect == "sqlite":  # its LIKE has no regard to the case of ASCII
        is_ascii, same = f"length({value}) = length(CAST({value} AS BLOB))", value
    else:
        is_ascii, same = f"octet_length({value}) = length({value})", f"lower({value})"
    plain = f"CASE WHEN {is_ascii} THEN {same} ELSE {folded(value, dialect)} END"
    return f"{plain} LIKE {folded(pattern, dialect)} ESCAPE '{_ESCAPE}'"


def folded(value: str, dialect: str) -> str:
    """Return the SQL of a text without case and diacritics."""
    if dialect == "sqlite":
        return f"fold({value})"
    return f"lower(regexp_replace(normalize(CAST({value} AS text), NFD), '[\u0300-\u036f]+', '', 'g'))"


def like_pattern(wanted: str) -> str:
    """Return the pattern of `like` for what a filter asks for."""
    characters = _clean(wanted)
    escaped = "".join(_ESCAPE + character if character in f"%_{_ESCAPE}" else character for character in characters)
    return escaped.replace("*", "%") if "*" in characters else f"%{escaped}%"


def _clean(value: str) -> str:
    return value.encode("utf-8", "replace").decode().replace("\0", " ")[:_MAX_TEXT]


def fold(value: Any) -> str | None:
    """Return a text without case and diacritics."""
    if not isinstance(value, str):
        return None
    if value.isascii():
        return value.lower()
    return "".join(c for c in unicodedata.normalize("NFD", value) if not "\u0300" <= c <= "\u036f").lower()


def add_fold(connection: Connection) -> None:
    """Give a connection to SQLite the function that conditions on texts use; PostgreSQL has it."""
    if connection.dialect.name == "sqlite":
        driver: Any = connection.connection.driver_connection
        driver.create_function("fold", 1, fold, deterministic=True)
