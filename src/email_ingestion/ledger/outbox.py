"""The outbox: pending deliveries to the further sinks. One worker claims a delivery at a time, and marks its end.

    waiting ──claim──▶ claimed ──mark_delivered──▶ delivered
       ▲                  │ └───────mark_dead────▶ dead ──record(only_sink)──▶ waiting
       └─defer, release, or the lease ended

A row is inserted in the transaction that records its message. The claim counts as an attempt, so that a message which
kills its worker is found; a release without a try takes the attempt back.

What an operator has sent again (`resends`) waits without a due time, and is claimed when nothing else is due.

Due times are by the clock of the database, not by that of a worker. Where that clock was ahead for a while, they lie in
a future that nobody asked for: `mend_due_times` brings them back.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, case, func, or_, select, update

from email_ingestion.ledger.engine import Database, database_now
from email_ingestion.ledger.tables import deliveries, emails
from email_ingestion.records import Envelope

LONGEST_WAIT = 6 * 3600.0  # seconds until another attempt, whatever a sink asks for
STEP_SECONDS = 2.0  # by which the database's clock may go back without anything being mended
_WAITING = deliveries.c.state == "waiting"
_RESEND = deliveries.c.due.is_(None)  # of a waiting one: see `resends`
ENVELOPE_COLUMNS = (
    *(emails.c.account, emails.c.mailbox, emails.c.uidvalidity, emails.c.uid, emails.c.gm_msgid, emails.c.gm_thrid),
    *(emails.c.labels, emails.c.flags, emails.c.internaldate, emails.c.size, emails.c.sha256),
)


@dataclass(frozen=True, slots=True)
class PendingDelivery:
    """One message that a sink must get."""

    envelope: Envelope
    raw_ref: str  # for `content_of`
    attempt: int  # the number of this attempt, from 1
    tags: tuple[str, ...]
    priority: int | None  # None: it was recorded before there were routes


@dataclass(frozen=True, slots=True)
class DeliveryClaim:
    """Deliveries to one sink, claimed until `until`; after that another worker may claim them."""

    sink: str
    until: datetime
    deliveries: tuple[PendingDelivery, ...] = ()
    abandoned: bool = False  # an earlier holder's lease ended: it may have been killed by this message


@dataclass(frozen=True, slots=True)
class WaitingDeliveries:
    """The number of deliveries that wait for one sink, and the oldest."""

    waiting: int
    oldest: datetime | None  # when the delivery that has waited longest was recorded or replayed
    resends: int = 0  # that wait behind them


@dataclass(frozen=True, slots=True)
class LongestWaiting:
    """The delivery that has waited longest for one sink; `due_in` seconds, None for one that is sent again."""

    email_id: str
    holder: str | None  # as in StartedDelivery
    attempts: int
    due_in: float | None  # until it may be tried, or its holder's lease ends; negative: since then


@dataclass(frozen=True, slots=True)
class StartedDelivery:
    """A delivery that a worker has, or that waits for another attempt after a failed one."""

    email_id: str
    sink: str
    holder: str | None  # the instance that has it, or died while it had it; None: it waits
    attempts: int  # started, the present one included
    owed_since: datetime  # when it was recorded or replayed


class Outbox:
    """The deliveries to all further sinks. Threads may share it.

    Every method raises SinkUnavailable when the database is down.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._clocks: dict[str, float] = {}  # by sink: what the database's clock was ahead of ours that never steps
        self._overlong_since: dict[str, float] = {}  # by sink: since when a lease ends later than any may

    def claim(self, sink: str, holder: str, limit: int, lease: float, *, suspects: bool = True) -> DeliveryClaim:
        """Claim up to `limit` due messages for `lease` seconds.

        A message that may have killed a worker comes alone, and not at all without `suspects`.
        """
        with self._database.connect() as connection:  # mostly nothing is due, and this needs no write lock
            now = database_now(connection)
            claim = DeliveryClaim(sink, now + timedelta(seconds=lease))
            mine = (deliveries.c.sink == sink, _WAITING, *(() if suspects else (deliveries.c.holder.is_(None),)))
            for due in ((*mine, deliveries.c.due <= now), (*mine, _RESEND)):
                if connection.execute(select(1).where(*due).limit(1)).first():
                    break
            else:
                return claim
        with self._database.begin() as connection:
            ids, abandoned = _select_due(connection, due, limit)
            attempts = case((deliveries.c.attempts > 0, deliveries.c.attempts + 1), else_=1)
            self._change(connection, sink, ids, due=claim.until, holder=holder, attempts=attempts)
            return DeliveryClaim(sink, claim.until, _load_deliveries(connection, sink, ids), abandoned)

    def extend(
        self, claim: DeliveryClaim, email_ids: Collection[str], lease: float
    ) -> tuple[DeliveryClaim, frozenset[str]]:
        """Extend the lease of the given messages of a claim to `lease` seconds from now.

        Return the claim as it is from now on, and the messages of it that another worker has taken over.
        """
        with self._database.begin() as connection:
            until = database_now(connection) + timedelta(seconds=lease)
            mine = (deliveries.c.sink == claim.sink, deliveries.c.email_id.in_(sorted(email_ids)), _is_held(claim))
            change = update(deliveries).where(*mine).values(due=until).returning(deliveries.c.email_id)
            held = set(connection.execute(change).scalars())
        return replace(claim, until=until), frozenset(set(email_ids) - held)

    def is_held(self, claim: DeliveryClaim, email_ids: Collection[str]) -> bool:
        """Whether the lease of all these messages lasts, and no other worker has taken one over."""
        mine = (
            deliveries.c.sink == claim.sink,
            deliveries.c.email_id.in_(sorted(email_ids)),
            _WAITING,
            _is_held(claim),
        )
        with self._database.connect() as connection:
            if database_now(connection) >= claim.until:
                return False
            held = connection.execute(select(func.count()).select_from(deliveries).where(*mine)).scalar_one()
        return bool(held == len(set(email_ids)))

    def mark_delivered(self, claim: DeliveryClaim, email_ids: Collection[str]) -> None:
        """Mark messages that the sink has, whichever worker holds them now."""
        self._settle(claim, email_ids, "delivered")

    def mark_dead(self, claim: DeliveryClaim, email_ids: Collection[str]) -> None:
        """Mark messages that are in the dead-letter queue."""
        self._settle(claim, email_ids, "dead", _WAITING)

    def defer(self, claim: DeliveryClaim, seconds: Mapping[str, float]) -> None:
        """Schedule the next attempt of each message, in so many seconds."""
        with self._database.begin() as connection:
            now = database_now(connection)
            for email_id, wait in seconds.items():
                due = now + timedelta(seconds=min(wait, LONGEST_WAIT))
                self._change(connection, claim.sink, [email_id], _is_held(claim), due=due, holder=None)

    def release(self, claim: DeliveryClaim, email_ids: Collection[str], seconds: float = 0.0) -> None:
        """Release messages that were not tried: the claim does not count as an attempt."""
        attempts = case((deliveries.c.attempts > 0, deliveries.c.attempts - 1), else_=0)
        with self._database.begin() as connection:
            due = database_now(connection) + timedelta(seconds=seconds)
            self._change(connection, claim.sink, email_ids, _is_held(claim), due=due, holder=None, attempts=attempts)

    def recover(self, sink: str, holder: str) -> int:
        """Make the claims of a killed `holder` due now; return how many. Their attempts stay counted."""
        mine = (deliveries.c.sink == sink, _WAITING, deliveries.c.holder == holder)
        with self._database.begin() as connection:
            due = database_now(connection)
            return connection.execute(update(deliveries).where(*mine).values(due=due)).rowcount

    def mend_due_times(self, sink: str, lease: float) -> int:
        """Make due what the clock put into an impossible future; return how many. Call it every few seconds.

        That is what waits when the clock has gone back since the last call, what waits longer than any may, and a
        lease that ends later than any does, once its holder had the time to extend it by the clock as it is.
        """
        ours = boot_time()
        mine = (deliveries.c.sink == sink, _WAITING)
        with self._database.connect() as connection:
            now = database_now(connection)
            latest = connection.execute(select(func.max(deliveries.c.due)).where(*mine)).scalar_one()
        offset = now.timestamp() - ours
        went_back = self._clocks.get(sink, offset) - offset > STEP_SECONDS
        self._clocks[sink] = offset
        overlong = now + timedelta(seconds=lease + STEP_SECONDS)
        if latest is None or latest <= overlong:
            self._overlong_since.pop(sink, None)
            if not (went_back and latest and latest > now):
                return 0
        abandoned = ours - self._overlong_since.setdefault(sink, ours) > lease if latest > overlong else False
        limit = now if went_back else now + timedelta(seconds=LONGEST_WAIT + lease)
        wrong = and_(deliveries.c.holder.is_(None), deliveries.c.due > limit)
        if abandoned:
            wrong = or_(wrong, and_(deliveries.c.holder.is_not(None), deliveries.c.due > overlong))
        with self._database.begin() as connection:
            return connection.execute(update(deliveries).where(*mine, wrong).values(due=now)).rowcount

    def backlog(self, sink: str) -> WaitingDeliveries:
        """Count the deliveries that wait for `sink`."""
        resend = case((_RESEND, 1))
        columns = (func.count(), func.count(resend), func.min(case((~_RESEND, deliveries.c.changed_at))))
        with self._database.connect() as connection:
            query = select(*columns).where(deliveries.c.sink == sink, _WAITING)
            waiting, resends, oldest = connection.execute(query).one()
        return WaitingDeliveries(waiting - resends, oldest, resends)

    def longest_waiting(self, sink: str) -> LongestWaiting | None:
        """Return what has waited longest for `sink`: that of `backlog`, else the first to be sent again."""
        columns = (deliveries.c.email_id, deliveries.c.holder, deliveries.c.attempts, deliveries.c.due)
        query = select(*columns).where(deliveries.c.sink == sink, _WAITING)
        with self._database.connect() as connection:
            now = database_now(connection)
            row = connection.execute(
                query.order_by(case((_RESEND, 1), else_=0), deliveries.c.changed_at).limit(1)
            ).first()
        if row is None:
            return None
        due_in = (row.due - now).total_seconds() if row.due else None
        return LongestWaiting(row.email_id, row.holder, row.attempts, due_in)

    def started(self, email_id: str = "", limit: int | None = None) -> list[StartedDelivery]:
        """Return the started deliveries of one message or of all, to whichever sink; the oldest first."""
        columns = (deliveries.c.email_id, deliveries.c.sink, deliveries.c.holder, deliveries.c.attempts)
        query = select(*columns, deliveries.c.changed_at).where(_WAITING, deliveries.c.attempts > 0)
        if email_id:
            query = query.where(deliveries.c.email_id == email_id)
        with self._database.connect() as connection:
            rows = connection.execute(query.order_by(deliveries.c.changed_at).limit(limit)).all()
        return [StartedDelivery(*row) for row in rows]

    def pending(self, sink: str, email_id: str) -> PendingDelivery | None:
        """Return the delivery of a message to a sink; None when it is delivered, dead or not owed."""
        where = (deliveries.c.sink == sink, deliveries.c.email_id == email_id, _WAITING)
        with self._database.connect() as connection:
            if connection.execute(select(1).where(*where)).first() is None:
                return None
            return next(iter(_load_deliveries(connection, sink, [email_id])), None)

    def _settle(
        self, claim: DeliveryClaim, email_ids: Collection[str], state: str, *where: ColumnElement[bool]
    ) -> None:
        with self._database.begin() as connection:
            now = database_now(connection)
            self._change(connection, claim.sink, email_ids, *where, state=state, due=None, holder=None, changed_at=now)

    def _change(
        self, connection: Connection, sink: str, email_ids: Collection[str], *where: ColumnElement[bool], **values: Any
    ) -> None:
        if email_ids:
            mine = (deliveries.c.sink == sink, deliveries.c.email_id.in_(sorted(email_ids)), *where)
            connection.execute(update(deliveries).where(*mine).values(**values))


def boot_time() -> float:
    """Return seconds by a clock that never steps, and goes on while the machine sleeps where there is one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _is_held(claim: DeliveryClaim) -> ColumnElement[bool]:
    """Match rows that this claim still holds: the end of the lease is its token, and another worker sets another."""
    return deliveries.c.due == claim.until


def _select_due(connection: Connection, due: tuple[ColumnElement[bool], ...], limit: int) -> tuple[list[str], bool]:
    query = select(deliveries.c.email_id, deliveries.c.holder).where(*due).order_by(deliveries.c.due)
    rows = connection.execute(query.limit(limit).with_for_update(skip_locked=True)).all()
    if rows and rows[0].holder is not None:  # it may have killed its holder: claim it alone
        return [rows[0].email_id], True
    return [row.email_id for row in rows if row.holder is None], False


def _load_deliveries(connection: Connection, sink: str, ids: list[str]) -> tuple[PendingDelivery, ...]:
    query = (
        select(*ENVELOPE_COLUMNS, emails.c.raw_ref, emails.c.tags, emails.c.priority, deliveries.c.attempts)
        .join(deliveries, deliveries.c.email_id == emails.c.email_id)
        .where(deliveries.c.sink == sink, emails.c.email_id.in_(ids))
        .order_by(emails.c.internaldate, emails.c.email_id)
    )
    return tuple(
        PendingDelivery(envelope_of(row), row.raw_ref, row.attempts, tuple(row.tags or ()), row.priority)
        for row in connection.execute(query)
    )


def envelope_of(row: Any) -> Envelope:
    """Return the envelope of a row that has the columns `ENVELOPE_COLUMNS`."""
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
