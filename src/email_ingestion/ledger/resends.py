"""Resends: what one sink is owed again, or for the first time, because an operator asked for it.

A resend is a waiting delivery without a due time, so it stands behind everything that has one: `Outbox.claim` takes it
when nothing else is due. Until then `attempts` says what it was before: `REPEATED` of a message that the sink had,
`NEW` of one that was never owed to it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import and_, delete, func, or_, select, update

from email_ingestion.ledger.engine import Database, database_now
from email_ingestion.ledger.outbox import ENVELOPE_COLUMNS, envelope_of
from email_ingestion.ledger.rows import insert_of
from email_ingestion.ledger.search import mail_conditions
from email_ingestion.ledger.search_filter import SearchFilter, add_fold
from email_ingestion.ledger.tables import deliveries, emails
from email_ingestion.records import Envelope

NEW, REPEATED = 0, -1
_RESEND = and_(deliveries.c.state == "waiting", deliveries.c.due.is_(None))


@dataclass(frozen=True, slots=True)
class ResendChoice:
    """Which delivered messages are looked at: what fulfils all of it; without anything, every message."""

    only: SearchFilter = field(default_factory=SearchFilter)
    words: str = ""  # as `search` takes them
    email_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ResendCandidate:
    """A delivered message, and its delivery to the sink, if there is one."""

    envelope: Envelope
    raw_ref: str
    state: str | None  # waiting, delivered or dead; None: it was never owed to the sink
    changed_at: datetime | None


class Resends:
    """The resends of one ledger. Every method raises SinkUnavailable when the database is down."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._insert = insert_of(database.engine)

    def now(self) -> datetime:
        """Return the time by the clock of the database, which `changed_at` goes by."""
        with self._database.connect() as connection:
            return database_now(connection)

    def choose(self, sink: str, choice: ResendChoice, after: Envelope | None, limit: int) -> list[ResendCandidate]:
        """Return messages of a choice, those behind `after`: the oldest first."""
        delivery = and_(deliveries.c.email_id == emails.c.email_id, deliveries.c.sink == sink)
        query = (
            select(*ENVELOPE_COLUMNS, emails.c.raw_ref, deliveries.c.state, deliveries.c.changed_at)
            .outerjoin_from(emails, deliveries, delivery)
            .where(*mail_conditions(self._database.engine.dialect.name, choice.words, choice.only))
            .order_by(emails.c.internaldate, emails.c.email_id)
            .limit(limit)
        )
        if choice.email_ids:
            query = query.where(emails.c.email_id.in_(choice.email_ids))
        if after:
            same = and_(emails.c.internaldate == after.internaldate, emails.c.email_id > after.email_id)
            query = query.where(or_(emails.c.internaldate > after.internaldate, same))
        with self._database.connect() as connection:
            add_fold(connection)
            rows = connection.execute(query).all()
        return [ResendCandidate(envelope_of(row), row.raw_ref, row.state, row.changed_at) for row in rows]

    def add(self, sink: str, repeated: Collection[str], new: Collection[str]) -> None:
        """Owe these messages to the sink: `repeated` are those it had, `new` those that were never owed to it."""
        with self._database.begin() as connection:
            now = database_now(connection)
            resend = {"state": "waiting", "due": None, "holder": None, "changed_at": now}
            if repeated:
                theirs = (deliveries.c.sink == sink, deliveries.c.email_id.in_(sorted(repeated)))
                delivered = (*theirs, deliveries.c.state == "delivered")
                connection.execute(update(deliveries).where(*delivered).values(**resend, attempts=REPEATED))
            if new:
                there = select(emails.c.email_id).where(emails.c.email_id.in_(sorted(new)))  # not erased meanwhile
                rows = [
                    {"email_id": email_id, "sink": sink, "attempts": NEW, **resend}
                    for email_id in connection.execute(there).scalars()
                ]
                if rows:
                    insert = self._insert(deliveries)
                    connection.execute(insert.on_conflict_do_nothing(index_elements=["email_id", "sink"]), rows)

    def left(self, sink: str) -> int:
        """Count the resends that no worker has begun."""
        query = select(func.count()).select_from(deliveries).where(deliveries.c.sink == sink, _RESEND)
        with self._database.connect() as connection:
            return connection.execute(query).scalar_one()

    def cancel(self, sink: str) -> int:
        """Take back the resends that no worker has begun; return how many."""
        mine = (deliveries.c.sink == sink, _RESEND)
        with self._database.begin() as connection:
            repeated = update(deliveries).where(*mine, deliveries.c.attempts == REPEATED)
            taken = connection.execute(repeated.values(state="delivered", attempts=1)).rowcount
            return taken + connection.execute(delete(deliveries).where(*mine)).rowcount
