"""Conversations: the messages that Gmail counts as one thread, else those that name each other in References.

Without Gmail's thread the messages before one are named in its header, and found by their Message-ID. Those after it
name it in theirs, for which there is no index: looked at are messages with the words of its subject.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import or_, select

from email_ingestion.ledger.engine import Database
from email_ingestion.ledger.search import mail_conditions
from email_ingestion.ledger.search_filter import SearchFilter, add_fold
from email_ingestion.ledger.tables import emails

MAX_MESSAGES = 200  # of one conversation
CANDIDATES = 500  # messages with the words of a subject that are looked at, the newest
MAX_SUBJECT = 1000  # characters
_NAMING = frozenset(["references", "in-reply-to"])
_Row = Any  # a row of the columns below
_MESSAGE_ID = re.compile(r"<[^<>\s]{1,998}>")
_PREFIX = re.compile(
    r"^\s*(?:(?:re|fwd?|aw|wg|sv|vs|antw|tr|rif|res)\s*(?:\[\d+\])?\s*:|\[[^\]]{0,60}\])\s*", re.IGNORECASE
)
_COLUMNS = (
    *(emails.c.email_id, emails.c.account, emails.c.internaldate, emails.c.from_name, emails.c.from_addr),
    *(emails.c.subject, emails.c.message_id, emails.c.gm_thrid, emails.c.headers),
)


@dataclass(frozen=True, slots=True)
class ConversationEntry:
    """One message of a conversation."""

    email_id: str
    internaldate: datetime  # aware, UTC
    from_name: str
    from_addr: str
    subject: str


class Conversations:
    """Finds them. Threads may share it; every method raises SinkUnavailable when the database is down."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of_message(self, email_id: str) -> list[ConversationEntry]:
        """Return the conversation of a message with itself, oldest first; nothing when it was not delivered."""
        with self._database.connect() as connection:
            add_fold(connection)
            own = connection.execute(select(*_COLUMNS).where(emails.c.email_id == email_id)).one_or_none()
            if own is None:
                return []
            query = select(*_COLUMNS).where(emails.c.account == own.account)
            if own.gm_thrid is not None:
                thread = query.where(emails.c.gm_thrid == own.gm_thrid)
                rows = connection.execute(thread.order_by(emails.c.internaldate).limit(MAX_MESSAGES)).all()
            else:
                names = {*_named(own), *filter(None, [own.message_id])}
                near = connection.execute(query.where(_has_name(names)).limit(MAX_MESSAGES)).all() if names else []
                rows = _linked(own, [*near, *self._with_subject(connection, own)])
        rows = sorted({row.email_id: row for row in (*rows, own)}.values(), key=lambda row: row.internaldate)
        return [
            ConversationEntry(row.email_id, row.internaldate, row.from_name or "", row.from_addr or "", row.subject)
            for row in rows
        ]

    def of_thread(self, gm_thrid: int, account: str | None = None) -> list[str]:
        """Return the identities of the messages of one of Gmail's threads, of `account` only, oldest first."""
        query = select(emails.c.email_id).where(emails.c.gm_thrid == gm_thrid)
        if account is not None:
            query = query.where(emails.c.account == account)
        with self._database.connect() as connection:
            ordered = query.order_by(emails.c.internaldate, emails.c.email_id).limit(MAX_MESSAGES)
            return list(connection.execute(ordered).scalars())

    def _with_subject(self, connection: Any, own: _Row) -> Sequence[_Row]:
        words = " ".join(re.findall(r"\w+", base_subject(own.subject)))
        if not words:
            return []
        conditions = mail_conditions(connection.dialect.name, f'"{words}"', SearchFilter(account=own.account))
        query = select(*_COLUMNS).where(*conditions).order_by(emails.c.internaldate.desc()).limit(CANDIDATES)
        found: Sequence[_Row] = connection.execute(query).all()
        return found


def base_subject(subject: str) -> str:
    """Return a subject without the marks of answers, forwarded messages and mailing lists."""
    subject = subject[:MAX_SUBJECT]
    while (rest := _PREFIX.sub("", subject, count=1)) != subject:
        subject = rest
    return subject.strip()


def _has_name(names: Iterable[str]) -> Any:
    return or_(*(emails.c.message_id == name for name in sorted(names)[:MAX_MESSAGES]))


def _linked(own: _Row, candidates: Iterable[_Row]) -> list[_Row]:
    """Return those that name, or are named by, one of the conversation, in as many steps as it takes."""
    left = {row.email_id: row for row in candidates if row.email_id != own.email_id}
    names = {*_named(own), *filter(None, [own.message_id])}
    found = [own]
    while len(found) < MAX_MESSAGES:
        new = [row for row in left.values() if row.message_id in names or not names.isdisjoint(_named(row))]
        if not new:
            break
        for row in new:
            found.append(left.pop(row.email_id))
            names |= {*_named(row), *filter(None, [row.message_id])}
    return found[:MAX_MESSAGES]


def _named(row: _Row) -> set[str]:
    """Return the Message-IDs that the header of a message names before it."""
    values = (value for name, value in row.headers if name.lower() in _NAMING)
    return {each for value in values for each in _MESSAGE_ID.findall(value)}
