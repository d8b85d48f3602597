"""What a sink must hold according to the ledger: the deliveries that were marked as done, and those on their way.

The routes are in it, for a message has a delivery to each sink that they sent it to; erased mail is not, for its
deliveries went with it. The database itself, the first sink, must hold every message.

Mail is read in the order of its arrival: that is how it lies on the disk. In the order of identities a million messages
would be a million reads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, literal, select, union

from email_ingestion.ledger.engine import Database, database_now
from email_ingestion.ledger.tables import attachments, deliveries, emails, places
from email_ingestion.records import email_id as identity_of

LEDGER_SINK = "database"
_CHUNK = 500  # values in one IN (…)
_SPAN = 5_000  # messages that are read together
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class OwedMessage:
    """A message that a sink must hold, or gets; `state` is that of its delivery, None where it is not owed."""

    email_id: str
    account: str
    internaldate: datetime  # aware, UTC
    sha256: str
    state: str | None  # waiting, delivered or dead
    changed_at: datetime

    def is_settled(self, before: datetime) -> bool:
        """Whether the sink has had it since `before`, and nothing is on its way to it."""
        return self.state == "delivered" and self.changed_at < before


class OwedMail:
    """What the sinks of one ledger are owed. Every method raises SinkUnavailable when the database is down."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def now(self) -> datetime:
        """Return the time by the clock of the database, which `changed_at` goes by."""
        with self._database.connect() as connection:
            return database_now(connection)

    def all_mail(self, sink: str) -> Iterator[OwedMessage]:
        """Yield all mail of a sink, the oldest first, give or take."""
        since: datetime | None = datetime.min.replace(tzinfo=UTC)
        while since is not None:
            until = self._end_of_span(since)
            yield from self._between(sink, since, until)
            since = until

    def of_day(self, sink: str, day: datetime, account: str) -> Iterator[OwedMessage]:
        """Yield the mail of a sink and an account that arrived on a day (UTC), in any order."""
        until = day + _DAY if day.date() < date.max else None
        yield from self._between(sink, day, until, emails.c.account == account)

    def _end_of_span(self, since: datetime) -> datetime | None:
        """Return the instant before which some thousand messages arrived since another; None: these are the last."""
        later = select(emails.c.internaldate).where(emails.c.internaldate > since)
        with self._database.connect() as connection:
            end: datetime | None = connection.execute(
                later.order_by(emails.c.internaldate).offset(_SPAN).limit(1)
            ).scalar_one_or_none()
        return end

    def _between(
        self, sink: str, since: datetime, until: datetime | None, *where: ColumnElement[bool]
    ) -> Iterator[OwedMessage]:
        query = _owed(sink).where(emails.c.internaldate >= since, *where)
        if until is not None:
            query = query.where(emails.c.internaldate < until)
        with self._database.connect() as connection:
            streaming = query.execution_options(stream_results=True, yield_per=_SPAN)
            with connection.execute(streaming) as rows:
                for row in rows:
                    yield OwedMessage(*row)

    def known(self, sink: str, email_ids: Collection[str]) -> dict[str, OwedMessage]:
        """Return those of some messages that the ledger has now; their `state` is None where the sink is not owed."""
        found: dict[str, OwedMessage] = {}
        wanted = sorted(email_ids)
        with self._database.connect() as connection:
            for start in range(0, len(wanted), _CHUNK):
                query = _owed(sink, all_mail=True).where(emails.c.email_id.in_(wanted[start : start + _CHUNK]))
                found |= {row.email_id: OwedMessage(*row) for row in connection.execute(query)}
        return found

    def record_rows(self, email_ids: Collection[str]) -> Iterator[tuple[Any, list[Any]]]:
        """Yield the row of `emails` and the rows of `attachments` of some messages."""
        wanted = sorted(email_ids)
        columns = [emails.c[name] for name in RECORD_COLUMNS]
        with self._database.connect() as connection:
            for start in range(0, len(wanted), _CHUNK):
                chunk = wanted[start : start + _CHUNK]
                parts: dict[str, list[Any]] = {}
                query = select(attachments).where(attachments.c.email_id.in_(chunk)).order_by(attachments.c.position)
                for part in connection.execute(query):
                    parts.setdefault(part.email_id, []).append(part)
                for row in connection.execute(select(*columns).where(emails.c.email_id.in_(chunk))):
                    yield row, parts.get(row.email_id, [])

    def orphans(self) -> set[str]:
        """Return messages that are gone from `emails` while other tables still have rows of them."""
        queries = [
            select(table.c.email_id)
            .outerjoin(emails, emails.c.email_id == table.c.email_id)
            .where(emails.c.email_id.is_(None))
            for table in (deliveries, attachments, places)
        ]
        with self._database.connect() as connection:
            return set(connection.execute(union(*queries)).scalars())


RECORD_COLUMNS = (
    *("email_id", "account", "gm_msgid", "gm_thrid", "internaldate", "size", "sha256", "raw_ref"),
    *("message_id", "subject", "from_addr", "from_name", "to_addrs", "cc_addrs", "date", "text", "html", "headers"),
)


def is_consistent(row: Any) -> bool:
    """Whether the identity of a row of `emails` is that of the facts beside it."""
    expected = identity_of(row.account, row.gm_msgid, row.sha256)
    return bool(row.email_id == expected)


def _owed(sink: str, *, all_mail: bool = False) -> Select[Any]:
    """Select the fields of OwedMessage for what is owed to a sink, or for `all_mail`, whoever is owed it."""
    columns = (emails.c.email_id, emails.c.account, emails.c.internaldate, emails.c.sha256)
    if sink == LEDGER_SINK:
        return select(*columns, literal("delivered").label("state"), emails.c.processed_at)
    delivery = and_(deliveries.c.email_id == emails.c.email_id, deliveries.c.sink == sink)
    changed_at = func.coalesce(deliveries.c.changed_at, emails.c.processed_at, type_=emails.c.processed_at.type)
    return select(*columns, deliveries.c.state, changed_at).join_from(emails, deliveries, delivery, isouter=all_mail)
