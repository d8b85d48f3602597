"""What the sinks beside the database are owed: claimed by one worker at a time, and marked when they have it.

    waiting ──claim──▶ held ──delivered──▶ delivered
       ▲                │ └────buried────▶ dead ──record(again)──▶ waiting
       └──deferred, given back, or its lease ended

A row is born in the transaction that records its message. An attempt counts from the moment it is claimed, so that a
message which kills its worker is found; who was not tried at all gets the attempt back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, case, func, select, update

from email_ingestion.ledger.engine import place, writing
from email_ingestion.ledger.failures import in_our_terms
from email_ingestion.ledger.schema import deliveries, emails
from email_ingestion.records import Envelope

_WAITING = deliveries.c.state == "waiting"
ENVELOPE = (
    *(emails.c.account, emails.c.mailbox, emails.c.uidvalidity, emails.c.uid, emails.c.gm_msgid, emails.c.gm_thrid),
    *(emails.c.labels, emails.c.flags, emails.c.internaldate, emails.c.size, emails.c.sha256),
)


@dataclass(frozen=True, slots=True)
class Owed:
    """A message that a sink has to get."""

    envelope: Envelope
    raw_ref: str  # for `content_of`
    attempt: int  # this one included
    tags: tuple[str, ...]
    priority: int | None  # None: it was recorded before there were routes


@dataclass(frozen=True, slots=True)
class Claim:
    """Messages held for one sink until `until`; whoever finds them later may take them over."""

    sink: str
    until: datetime
    owed: tuple[Owed, ...] = ()
    abandoned: bool = False  # somebody who held it did not come back


@dataclass(frozen=True, slots=True)
class Backlog:
    """What one sink still has to get."""

    waiting: int
    oldest: datetime | None  # when the one that has waited longest was recorded or put back


class Outbox:
    """Threads may share it; every method raises SinkUnavailable when the database is away."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writer = writing(engine)
        self._place = place(engine)

    def claim(self, sink: str, holder: str, most: int, lease: float) -> Claim:
        """Take up to `most` messages that are due, for `lease` seconds; one alone that somebody died over."""
        now = datetime.now(UTC)
        claim = Claim(sink, now + timedelta(seconds=lease))
        due = (deliveries.c.sink == sink, _WAITING, deliveries.c.due <= now)
        with in_our_terms(self._place):
            with self._engine.connect() as connection:  # most looks find nothing, and need no write lock
                if connection.execute(select(1).where(*due).limit(1)).first() is None:
                    return claim
            with self._writer.begin() as connection:
                ids, abandoned = _chosen(connection, due, most)
                self._change(connection, sink, ids, due=claim.until, holder=holder, attempts=deliveries.c.attempts + 1)
                return Claim(sink, claim.until, _owed(connection, sink, ids), abandoned)

    def hold(self, claim: Claim, email_ids: Collection[str], lease: float) -> Claim:
        """Prolong the claim on those of its messages that are not done yet."""
        until = datetime.now(UTC) + timedelta(seconds=lease)
        with in_our_terms(self._place), self._writer.begin() as connection:
            self._change(connection, claim.sink, email_ids, _held(claim), due=until)
        return replace(claim, until=until)

    def delivered(self, claim: Claim, email_ids: Collection[str]) -> None:
        """Mark what the sink has, whoever holds it now."""
        self._settle(claim, email_ids, "delivered")

    def buried(self, claim: Claim, email_ids: Collection[str]) -> None:
        """Mark what lies with the dead letters."""
        self._settle(claim, email_ids, "dead")

    def deferred(self, claim: Claim, seconds: Mapping[str, float]) -> None:
        """Let each of these messages wait for its seconds until the next attempt."""
        now = datetime.now(UTC)
        with in_our_terms(self._place), self._writer.begin() as connection:
            for email_id, wait in seconds.items():
                due = now + timedelta(seconds=wait)
                self._change(connection, claim.sink, [email_id], _held(claim), due=due, holder=None)

    def give_back(self, claim: Claim, email_ids: Collection[str], seconds: float = 0.0) -> None:
        """Let go of messages that were not to blame: this was no attempt."""
        attempts = case((deliveries.c.attempts > 0, deliveries.c.attempts - 1), else_=0)
        due = datetime.now(UTC) + timedelta(seconds=seconds)
        with in_our_terms(self._place), self._writer.begin() as connection:
            self._change(connection, claim.sink, email_ids, _held(claim), due=due, holder=None, attempts=attempts)

    def recover(self, sink: str, holder: str) -> int:
        """Make due what an earlier life of `holder` was killed over; returns how many. It keeps their attempts."""
        mine = (deliveries.c.sink == sink, _WAITING, deliveries.c.holder == holder)
        with in_our_terms(self._place), self._writer.begin() as connection:
            return connection.execute(update(deliveries).where(*mine).values(due=datetime.now(UTC))).rowcount

    def backlog(self, sink: str) -> Backlog:
        """What `sink` still has to get."""
        query = select(func.count(), func.min(deliveries.c.changed_at)).where(deliveries.c.sink == sink, _WAITING)
        with in_our_terms(self._place), self._engine.connect() as connection:
            waiting, oldest = connection.execute(query).one()
        return Backlog(waiting, oldest)

    def _settle(self, claim: Claim, email_ids: Collection[str], state: str) -> None:
        now = datetime.now(UTC)
        with in_our_terms(self._place), self._writer.begin() as connection:
            self._change(connection, claim.sink, email_ids, state=state, due=None, holder=None, changed_at=now)

    def _change(
        self, connection: Connection, sink: str, email_ids: Collection[str], *where: ColumnElement[bool], **values: Any
    ) -> None:
        if email_ids:
            mine = (deliveries.c.sink == sink, deliveries.c.email_id.in_(sorted(email_ids)), *where)
            connection.execute(update(deliveries).where(*mine).values(**values))


def _held(claim: Claim) -> ColumnElement[bool]:
    """The end of the lease is its token: who took a message over meanwhile has set another one."""
    return deliveries.c.due == claim.until


def _chosen(connection: Connection, due: tuple[ColumnElement[bool], ...], most: int) -> tuple[list[str], bool]:
    query = select(deliveries.c.email_id, deliveries.c.holder).where(*due).order_by(deliveries.c.due)
    rows = connection.execute(query.limit(most).with_for_update(skip_locked=True)).all()
    if rows and rows[0].holder is not None:  # perhaps it killed its holder: not to take others along
        return [rows[0].email_id], True
    return [row.email_id for row in rows if row.holder is None], False


def _owed(connection: Connection, sink: str, ids: list[str]) -> tuple[Owed, ...]:
    query = (
        select(*ENVELOPE, emails.c.raw_ref, emails.c.tags, emails.c.priority, deliveries.c.attempts)
        .join(deliveries, deliveries.c.email_id == emails.c.email_id)
        .where(deliveries.c.sink == sink, emails.c.email_id.in_(ids))
        .order_by(emails.c.internaldate, emails.c.email_id)
    )
    return tuple(
        Owed(envelope_of(row), row.raw_ref, row.attempts, tuple(row.tags or ()), row.priority)
        for row in connection.execute(query)
    )


def envelope_of(row: Any) -> Envelope:
    """The envelope in a row that has the columns `ENVELOPE`."""
    return Envelope(
        account=row.account,
        mailbox=row.mailbox,
        uidvalidity=row.uidvalidity,
        uid=row.uid,
        gm_msgid=row.gm_msgid,
        gm_thrid=row.gm_thrid,
        labels=tuple(row.labels),
        flags=tuple(row.flags or ()),
        internaldate=row.internaldate,
        size=row.size,
        sha256=row.sha256,
    )
