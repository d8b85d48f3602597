"""The change feed: what happened to each delivered message, numbered in the order of the commits.

    SQLite       one writer at a time: the number is taken in the transaction of the change (BEGIN IMMEDIATE)
    PostgreSQL   transaction of the change ─▶ `change_arrivals` ──number()──▶ `changes`

A number that is taken when a row is inserted says nothing about commits: a transaction with a lower one may commit
later, and a reader that went past it never sees it. So on PostgreSQL a change waits without a number until it is
committed, and `number` gives numbers to what is committed, one caller at a time, under the lock of the only row of
`change_feed`. A lock around each commit would give the same order; but every worker would wait for one that was frozen
between lock and commit, and mail would stand still. Here the feed alone waits. See docs/changes.md.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, delete, func, null, select, text, update

from email_ingestion.errors import EmailIngestionError
from email_ingestion.ledger.engine import Database
from email_ingestion.ledger.rows import insert_of
from email_ingestion.ledger.tables import change_arrivals, change_feed, changes, held_changes
from email_ingestion.records import ChangeKind

PAGE = 1_000  # changes of one answer
SCANNED = 50_000  # numbers that one answer looks at, to find those of one account
NUMBERED = 5_000  # changes numbered in one transaction
NUMBERING_SECONDS = 10  # after which the server ends a caller that was frozen in the middle
_FEED = 1  # the key of the only row
_CHUNK = 500  # values in one IN (…)

_INSERT = "INSERT INTO changes (seq, at, kind, account, email_id, details) VALUES (?, ?, ?, ?, ?, ?)"
_ARRIVE = """
    INSERT INTO change_arrivals (at, kind, account, email_id, details)
    SELECT %s, %s, account, email_id, details::jsonb
    FROM unnest(%s::text[], %s::text[], %s::text[]) WITH ORDINALITY AS noted (account, email_id, details, position)
    ORDER BY position
"""
# Numbers in the order of arrival: what happens to a message later arrives later, for its row was committed before.
_NUMBER = text("""
    WITH taken AS (
        DELETE FROM change_arrivals WHERE arrival IN (SELECT arrival FROM change_arrivals ORDER BY arrival LIMIT :limit)
        RETURNING *
    ), numbered AS (
        INSERT INTO changes (seq, at, kind, account, email_id, details)
        SELECT :last + row_number() OVER (ORDER BY arrival), at, kind, account, email_id, details FROM taken
        RETURNING 1
    )
    UPDATE change_feed SET last_seq = last_seq + (SELECT count(*) FROM numbered) RETURNING last_seq
""")


@dataclass(frozen=True, slots=True)
class Change:
    """One change, as it is noted; `details` hold nothing of the mail's content."""

    account: str
    email_id: str
    details: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class NumberedChange:
    """One change as readers get it."""

    seq: int
    at: datetime  # when it was noted, by the clock of the process that did
    kind: ChangeKind
    account: str
    email_id: str
    details: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class ChangePage:
    """Changes in order; `next_seq` is how far the reader has come, also where none of them were for it."""

    changes: tuple[NumberedChange, ...]
    next_seq: int


class ChangesGone(EmailIngestionError):
    """What comes after the reader's position is not in the feed any more, or never was: it must start again."""

    def __init__(self, after: int, start_from: int, *, removed: bool) -> None:
        why = (
            f"the changes after {after} are not kept any more"
            if removed
            else f"the feed has not come to {after}: the database is another one, or was restored"
        )
        super().__init__(f"{why}; read the list of e-mails again, then the changes after {start_from}")
        self.start_from = start_from


def note_changes(connection: Connection, kind: ChangeKind, noted: Iterable[Change]) -> None:
    """Write changes in the transaction of what changes."""
    some = list(noted)
    if not some:
        return
    now = datetime.now(UTC)
    details = [None if each.details is None else json.dumps(each.details, ensure_ascii=False) for each in some]
    # By the driver: it is done for each message, and took a sixth of `record` with SQLAlchemy's processing of each row.
    if connection.dialect.name == "sqlite":
        first = _advance(connection, len(some)) - len(some) + 1
        rows = [
            (first + index, now.isoformat(), kind.value, each.account, each.email_id, json_text)
            for index, (each, json_text) in enumerate(zip(some, details, strict=True))
        ]
        connection.exec_driver_sql(_INSERT, rows)
    else:
        accounts, email_ids = [each.account for each in some], [each.email_id for each in some]
        connection.exec_driver_sql(_ARRIVE, (now, kind.value, accounts, email_ids, details))


def strip_changes(connection: Connection, email_ids: Sequence[str]) -> None:
    """Remove the details of all changes of messages that are being erased; labels may name people."""
    _lock_feed(connection)  # else a change might be numbered, with its details, behind our back
    for table in (changes, change_arrivals):
        for start in range(0, len(email_ids), _CHUNK):
            mine = (table.c.email_id.in_(email_ids[start : start + _CHUNK]), table.c.details.is_not(None))
            connection.execute(update(table).where(*mine).values(details=null()))


def restart_feed(connection: Connection) -> None:
    """Have every reader start again: mail came back of which no change tells, and changes were lost.

    The numbers go on from the microseconds since 1970: behind all that this database may have given out since it was
    copied, and exact in JSON.
    """
    _lock_feed(connection)
    last, _ = _position(connection)
    last = max(last + 1, int(datetime.now(UTC).timestamp() * 1_000_000))
    connection.execute(delete(changes))
    connection.execute(delete(held_changes))
    connection.execute(update(change_feed).values(last_seq=last, removed_to=last))


class ChangeFeed:
    """The change feed of one ledger. Threads may share it; every method raises SinkUnavailable when it is down."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def number(self) -> int:
        """Number what was committed since, up to NUMBERED changes; return how many. Another process may do it now."""
        if self._database.engine.dialect.name == "sqlite":
            return 0
        with self._database.connect() as connection:
            if connection.execute(select(change_arrivals.c.arrival).limit(1)).first() is None:
                return 0
        return self._number_some()

    def number_all(self) -> None:
        """Number all that was committed until now."""
        while self.number() == NUMBERED:
            pass

    def _number_some(self) -> int:
        with self._database.begin() as connection:
            connection.execute(
                text("SELECT set_config('idle_in_transaction_session_timeout', :limit, true)"),
                {"limit": str(NUMBERING_SECONDS * 1000)},
            )
            _make_feed(connection)
            row = select(change_feed.c.last_seq).where(change_feed.c.id == _FEED)
            last = connection.execute(row.with_for_update(skip_locked=True)).scalar_one_or_none()
            if last is None:
                return 0
            # A statement of its own: what it sees is what was committed after the lock was got.
            reached: int = connection.execute(_NUMBER, {"last": last, "limit": NUMBERED}).scalar_one()
            return int(reached - last)

    def last(self) -> int:
        """Return the number of the last change, after numbering what was committed."""
        self.number_all()
        with self._database.connect() as connection:
            return _position(connection)[0]

    def read(self, after: int, limit: int = PAGE, accounts: Collection[str] | None = None) -> ChangePage:
        """Return changes behind the number `after`, of some accounts or of all. Raises ChangesGone."""
        with self._database.connect() as connection:
            # What is numbered up to here is committed; what was removed is asked after the rows were read.
            last, _ = _position(connection)
            end = min(last, after + SCANNED)
            query = select(changes).where(changes.c.seq > after, changes.c.seq <= end)
            if accounts is not None:
                query = query.where(changes.c.account.in_(sorted(accounts)))
            rows = connection.execute(query.order_by(changes.c.seq).limit(limit)).all()
            newest, removed_to = _position(connection)
        if after < removed_to or after > newest:
            raise ChangesGone(after, newest, removed=after < removed_to)
        found = tuple(
            NumberedChange(row.seq, row.at, ChangeKind(row.kind), row.account, row.email_id, row.details)
            for row in rows
        )
        return ChangePage(found, found[-1].seq if len(found) == limit else max(end, after))

    def remove_before(self, moment: datetime) -> int:
        """Remove the changes that were noted before `moment`, from the first on; return how many."""
        removed = 0
        while True:
            with self._database.begin() as connection:
                _lock_feed(connection)
                oldest = select(changes.c.seq, changes.c.at).order_by(changes.c.seq).limit(NUMBERED)
                rows = connection.execute(oldest).all()
                old: list[int] = []
                for row in rows:
                    if row.at >= moment:
                        break
                    old.append(row.seq)
                if not old:
                    return removed
                connection.execute(delete(changes).where(changes.c.seq <= old[-1]))
                connection.execute(delete(held_changes).where(held_changes.c.seq <= old[-1]))
                connection.execute(update(change_feed).values(removed_to=old[-1]))
            removed += len(old)
            if len(old) < NUMBERED:
                return removed

    def count(self) -> int:
        """Count the changes that are kept."""
        with self._database.connect() as connection:
            return connection.execute(select(func.count()).select_from(changes)).scalar_one()


def _position(connection: Connection) -> tuple[int, int]:
    """Return the last number that was given, and the last of those that were removed."""
    row = connection.execute(select(change_feed.c.last_seq, change_feed.c.removed_to)).one_or_none()
    return (row.last_seq, row.removed_to) if row else (0, 0)


def _advance(connection: Connection, count: int) -> int:
    """Take `count` numbers; return the last of them."""
    insert = insert_of(connection.engine)(change_feed).values(id=_FEED, last_seq=count, removed_to=0)
    taken = insert.on_conflict_do_update(
        index_elements=["id"], set_={"last_seq": change_feed.c.last_seq + insert.excluded.last_seq}
    )
    last: int = connection.execute(taken.returning(change_feed.c.last_seq)).scalar_one()
    return last


def _make_feed(connection: Connection) -> None:
    insert = insert_of(connection.engine)(change_feed).values(id=_FEED, last_seq=0, removed_to=0)
    connection.execute(insert.on_conflict_do_nothing(index_elements=["id"]))


def _lock_feed(connection: Connection) -> None:
    """Keep others from numbering until the end of the transaction; SQLite has one writer anyway."""
    _make_feed(connection)
    connection.execute(select(change_feed.c.last_seq).with_for_update()).all()
