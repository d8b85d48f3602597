"""How far each sink was told of the change feed, and what it has not taken: one process at a time tells a sink.

    behind the position ──told──▶ the position moves on
          └ fails over it, or its message is still owed ──▶ waiting ──told──▶ gone
                                                      never taken ──▶ refused ──try_again──▶ waiting

A position moves in the transaction that notes down what the sink has not taken, so a process that is killed tells at
most its last part again. While one change of a message waits, the later ones of that message wait behind it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, false, func, or_, select, update

from email_ingestion.ledger.change_feed import ChangeFeed
from email_ingestion.ledger.engine import Database, database_now
from email_ingestion.ledger.outbox import LONGEST_WAIT, STEP_SECONDS, boot_time
from email_ingestion.ledger.rows import insert_of
from email_ingestion.ledger.tables import change_readers, changes, deliveries, erasure_notices, held_changes
from email_ingestion.records import ChangeEvent, ChangeKind

COUNTED = 100_000  # changes behind a position, above which nobody needs to know how many more
_CHUNK = 500  # values in one IN (…)
_WAITING = held_changes.c.state == "waiting"


@dataclass(frozen=True, slots=True)
class ReaderClaim:
    """The right to tell one sink, until `until`; changes up to `last_seq` were told, or are held."""

    sink: str
    holder: str
    until: datetime
    last_seq: int


@dataclass(frozen=True, slots=True)
class HeldChange:
    """A change that a sink has not taken: `wait` seconds until the next attempt, None when it refused it for good."""

    seq: int
    email_id: str
    attempts: int
    wait: float | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class DueChange:
    """A held change to be told now."""

    event: ChangeEvent
    attempts: int


@dataclass(frozen=True, slots=True)
class ChangeBacklogCount:
    """What a sink was not told yet: `waiting` counts to COUNTED, `oldest` is when the first of them was noted."""

    waiting: int
    oldest: datetime | None
    refused: int


class ToldChanges:
    """What the sinks of one ledger were told. Threads may share it.

    Every method raises SinkUnavailable when the database is down.
    """

    def __init__(self, database: Database, feed: ChangeFeed) -> None:
        self._database = database
        self._feed = feed
        self._overlong: dict[str, tuple[datetime, float]] = {}  # by sink: a lease longer than any, and seen since when

    def claim(self, sink: str, holder: str, lease: float) -> ReaderClaim | None:
        """Claim a sink; None while another process tells it. A new one begins where the feed ends now."""
        mine = change_readers.c.sink == sink
        abandoned: ColumnElement[bool] = false()
        with self._database.connect() as connection:
            now = database_now(connection)
            row = connection.execute(select(change_readers).where(mine)).one_or_none()
        if row is None:
            start = self._feed.last()
            with self._database.begin() as connection:
                insert = insert_of(connection.engine)(change_readers).values(sink=sink, last_seq=start)
                connection.execute(insert.on_conflict_do_nothing(index_elements=["sink"]))
        elif row.holder not in (None, holder) and row.until > now:
            if not self._is_impossible(row, now, lease):
                return None
            abandoned = change_readers.c.until == row.until  # else it was extended since
        with self._database.begin() as connection:
            now = database_now(connection)
            free = or_(change_readers.c.holder.is_(None), change_readers.c.holder == holder)
            free = or_(free, change_readers.c.until <= now, abandoned)
            until = now + timedelta(seconds=lease)
            taken = update(change_readers).where(mine, free).values(holder=holder, until=until)
            last = connection.execute(taken.returning(change_readers.c.last_seq)).scalar_one_or_none()
        return None if last is None else ReaderClaim(sink, holder, until, last)

    def _is_impossible(self, row: Any, now: datetime, lease: float) -> bool:
        """Whether the lease ends later than any does, though its holder had the time to extend it since."""
        if row.until <= now + timedelta(seconds=lease + STEP_SECONDS):
            self._overlong.pop(row.sink, None)
            return False
        known = self._overlong.get(row.sink)
        if known is None or known[0] != row.until:
            known = self._overlong[row.sink] = (row.until, boot_time())
        return boot_time() - known[1] > lease

    def extend(self, claim: ReaderClaim, lease: float) -> ReaderClaim | None:
        """Extend a claim to `lease` seconds from now; None when another process has it."""
        with self._database.begin() as connection:
            until = database_now(connection) + timedelta(seconds=lease)
            kept = connection.execute(update(change_readers).where(*_held(claim)).values(until=until)).rowcount
        return replace(claim, until=until) if kept else None

    def is_held(self, claim: ReaderClaim) -> bool:
        """Whether the lease lasts and no other process has the sink."""
        with self._database.connect() as connection:
            if database_now(connection) >= claim.until:
                return False
            return connection.execute(select(1).where(*_held(claim))).first() is not None

    def release(self, claim: ReaderClaim) -> None:
        """Let another process go on at once."""
        with self._database.begin() as connection:
            connection.execute(update(change_readers).where(*_held(claim)).values(holder=None, until=None))

    def settle(
        self, claim: ReaderClaim, last_seq: int, held: Sequence[HeldChange], taken: Iterable[ChangeEvent]
    ) -> ReaderClaim | None:
        """Move the position, note down what the sink has not taken, and forget of that what it was told.

        Nothing is written, and None returned, when another process has the sink.
        """
        ended = [*taken]
        with self._database.begin() as connection:
            moved = update(change_readers).where(*_held(claim)).values(last_seq=last_seq)
            if not connection.execute(moved).rowcount:
                return None
            _forget(connection, claim.sink, ended)
            _hold(connection, claim.sink, held)
        return replace(claim, last_seq=last_seq)

    def start_again(self, claim: ReaderClaim, last_seq: int) -> ReaderClaim | None:
        """Move the position to where the feed can be read again; what was held of before is not known any more."""
        with self._database.begin() as connection:
            moved = update(change_readers).where(*_held(claim)).values(last_seq=last_seq)
            if not connection.execute(moved).rowcount:
                return None
            gone = (held_changes.c.sink == claim.sink, held_changes.c.seq.not_in(select(changes.c.seq)))
            connection.execute(delete(held_changes).where(*gone))
        return replace(claim, last_seq=last_seq)

    def due(self, sink: str, limit: int) -> list[list[DueChange]]:
        """Return the held changes whose time has come, by message and in order."""
        with self._database.connect() as connection:
            now = database_now(connection)
            mine = (held_changes.c.sink == sink, _WAITING)
            latest = now + timedelta(seconds=LONGEST_WAIT + STEP_SECONDS)  # beyond it the clock was ahead
            come = or_(held_changes.c.due <= now, held_changes.c.due > latest)
            first = select(held_changes.c.email_id).where(*mine, come)
            first = first.group_by(held_changes.c.email_id).order_by(func.min(held_changes.c.due)).limit(limit)
            wanted = connection.execute(first).scalars().all()
            if not wanted:
                return []
            query = (
                select(changes, held_changes.c.attempts, held_changes.c.due, erasure_notices.c.erased_at)
                .join(held_changes, held_changes.c.seq == changes.c.seq)
                .outerjoin(
                    erasure_notices,
                    and_(erasure_notices.c.email_id == changes.c.email_id, erasure_notices.c.sink == sink),
                )
                .where(*mine, held_changes.c.email_id.in_(wanted))
                .order_by(changes.c.seq)
            )
            chains: dict[str, list[DueChange]] = {}
            later: set[str] = set()  # the first of whose changes is not due
            for row in connection.execute(query):
                if row.email_id not in chains and now < row.due <= latest:
                    later.add(row.email_id)
                if row.email_id not in later:
                    chains.setdefault(row.email_id, []).append(DueChange(_event(row), row.attempts))
        return list(chains.values())

    def delivery_states(self, sink: str, email_ids: Collection[str]) -> dict[str, str]:
        """Return the states of the deliveries of these messages; one that the sink does not get is not among them."""
        columns = (deliveries.c.email_id, deliveries.c.state)
        return self._by_message(select(*columns).where(deliveries.c.sink == sink), deliveries.c.email_id, email_ids)

    def erasures_to_tell(self, sink: str, email_ids: Collection[str]) -> dict[str, datetime]:
        """Return of which of these messages a sink is to be told that they were erased, and when they were."""
        columns = (erasure_notices.c.email_id, erasure_notices.c.erased_at)
        query = select(*columns).where(erasure_notices.c.sink == sink)
        return self._by_message(query, erasure_notices.c.email_id, email_ids)

    def waiting_messages(self, sink: str, email_ids: Collection[str]) -> set[str]:
        """Return those of these messages of which an earlier change waits."""
        columns = (held_changes.c.email_id, held_changes.c.state)
        query = select(*columns).where(held_changes.c.sink == sink, _WAITING)
        return set(self._by_message(query, held_changes.c.email_id, email_ids))

    def _by_message(self, query: Any, column: ColumnElement[str], email_ids: Collection[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        wanted = sorted(email_ids)
        if wanted:
            with self._database.connect() as connection:
                for start in range(0, len(wanted), _CHUNK):
                    rows = connection.execute(query.where(column.in_(wanted[start : start + _CHUNK])))
                    found |= {row[0]: row[1] for row in rows}
        return found

    def backlog(self, sink: str, kinds: Collection[str]) -> ChangeBacklogCount:
        """Count what a sink was not told yet, of these kinds, and what it refused."""
        mine = held_changes.c.sink == sink
        behind = select(func.max(change_readers.c.last_seq)).where(change_readers.c.sink == sink).scalar_subquery()
        new = (changes.c.seq > behind, changes.c.kind.in_(sorted(kinds)))
        with self._database.connect() as connection:
            some = select(changes.c.at).where(*new).order_by(changes.c.seq).limit(COUNTED).subquery()
            counted, first = connection.execute(select(func.count(), func.min(some.c.at)).select_from(some)).one()
            kept = select(func.count(), func.min(changes.c.at)).join(held_changes, held_changes.c.seq == changes.c.seq)
            held, oldest = connection.execute(kept.where(mine, _WAITING)).one()
            refused = connection.execute(kept.where(mine, ~_WAITING)).one()[0]
        ages = [each for each in (first, oldest) if each is not None]
        return ChangeBacklogCount(counted + held, min(ages, default=None), refused)

    def refused(self, sink: str) -> list[tuple[ChangeEvent, str]]:
        """Return what a sink refused for good, and why."""
        query = (
            select(changes, held_changes.c.reason)
            .join(held_changes, held_changes.c.seq == changes.c.seq)
            .where(held_changes.c.sink == sink, ~_WAITING)
        )
        with self._database.connect() as connection:
            rows = connection.execute(query.order_by(changes.c.seq)).all()
        return [(_event(row), row.reason or "") for row in rows]

    def try_again(self, sink: str) -> int:
        """Have a sink told again what it refused; return how many changes."""
        with self._database.begin() as connection:
            mine = (held_changes.c.sink == sink, ~_WAITING, held_changes.c.seq.in_(select(changes.c.seq)))
            values = {"state": "waiting", "due": database_now(connection), "attempts": 0, "reason": None}
            return connection.execute(update(held_changes).where(*mine).values(**values)).rowcount


def _held(claim: ReaderClaim) -> tuple[ColumnElement[bool], ...]:
    """Match the row that this claim still holds: the end of the lease is its token."""
    mine = (change_readers.c.sink == claim.sink, change_readers.c.holder == claim.holder)
    return (*mine, change_readers.c.until == claim.until)


def _hold(connection: Connection, sink: str, held: Sequence[HeldChange]) -> None:
    if not held:
        return
    now = database_now(connection)
    insert = insert_of(connection.engine)(held_changes)
    names = ("state", "due", "attempts", "reason")
    upsert = insert.on_conflict_do_update(
        index_elements=["sink", "seq"], set_={name: insert.excluded[name] for name in names}
    )
    rows: list[Mapping[str, Any]] = [
        {
            "sink": sink,
            "seq": each.seq,
            "email_id": each.email_id,
            "state": "refused" if each.wait is None else "waiting",
            "due": None if each.wait is None else now + timedelta(seconds=each.wait),
            "attempts": each.attempts,
            "reason": each.reason,
        }
        for each in held
    ]
    connection.execute(upsert, rows)


def _forget(connection: Connection, sink: str, ended: Sequence[ChangeEvent]) -> None:
    """Remove what was held of changes that the sink was told, and its notices of erasures."""
    for start in range(0, len(ended), _CHUNK):
        part = ended[start : start + _CHUNK]
        mine = (held_changes.c.sink == sink, held_changes.c.seq.in_([each.seq for each in part]))
        connection.execute(delete(held_changes).where(*mine))
    erased = [each.email_id for each in ended if each.erased_at]
    for start in range(0, len(erased), _CHUNK):
        mine = (erasure_notices.c.sink == sink, erasure_notices.c.email_id.in_(erased[start : start + _CHUNK]))
        connection.execute(delete(erasure_notices).where(*mine))


def _event(row: Any) -> ChangeEvent:
    erased_at = getattr(row, "erased_at", None) if row.kind == ChangeKind.ERASED else None
    return ChangeEvent(row.seq, row.at, ChangeKind(row.kind), row.account, row.email_id, row.details, erased_at)
