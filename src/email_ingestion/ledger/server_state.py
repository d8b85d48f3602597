"""Keep what the ledger has of a message's state on its server: labels, flags, and whether it is still there.

Each difference is noted as a change, in the transaction that writes it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, bindparam, or_, select, update

from email_ingestion.ledger.change_feed import Change, note_changes
from email_ingestion.ledger.engine import Database
from email_ingestion.ledger.model import Location, Marks
from email_ingestion.ledger.rows import chunks
from email_ingestion.ledger.tables import emails, places
from email_ingestion.records import ChangeKind

_RANGES = 100  # ranges of UIDs in one query
_SESSION_FLAG = "\\Recent"  # says something of a connection, not of the message (RFC 3501, section 2.3.2)
_TRASH = {"\\deleted", "\\trash"}  # the flag, and the label


class ServerState:
    """The state of one ledger's messages. Threads may share it; every method raises SinkUnavailable when it is down."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def update_marks(self, mailbox: str, marks: Mapping[str, Marks]) -> tuple[set[str], int]:
        """Set labels and flags of delivered messages; return the delivered identities, and of how many labels changed.

        Only messages first delivered from `mailbox` change: in another mailbox the server may leave labels out.
        """
        recorded: set[str] = set()
        differing: list[str] = []
        with self._database.connect() as connection:
            for row in _stored_marks(connection, list(marks), for_update=False):
                recorded.add(row.email_id)
                if row.mailbox == mailbox and _differs(row, marks[row.email_id]):
                    differing.append(row.email_id)
        if not differing:
            return recorded, 0
        relabelled = 0
        with self._database.begin() as connection:
            # Once more: meanwhile a message may have been erased, or changed by another process.
            rows = [
                row
                for row in _stored_marks(connection, sorted(differing), for_update=True)
                if _differs(row, marks[row.email_id])
            ]
            for name in ("labels", "flags"):
                values = [
                    {"id": row.email_id, "new": list(new)}
                    for row in rows
                    if (new := _new(row, marks[row.email_id], name)) is not None
                ]
                relabelled += len(values) if name == "labels" else 0
                if values:
                    statement = update(emails).where(emails.c.email_id == bindparam("id"))
                    connection.execute(statement.values({name: bindparam("new", type_=emails.c[name].type)}), values)
            noted: dict[ChangeKind, list[Change]] = {}
            for row in rows:
                for kind, change in _changes_of(row, marks[row.email_id]):
                    noted.setdefault(kind, []).append(change)
            for kind, some in noted.items():
                note_changes(connection, kind, some)
        return recorded, relabelled

    def ids_at(self, account: str, mailbox: str, uidvalidity: int, uids: Sequence[int]) -> dict[int, str]:
        """Return the identities of the messages that were first delivered from these UIDs."""
        query = select(emails.c.uid, emails.c.email_id).where(*_here(emails, account, mailbox, uidvalidity))
        found: dict[int, str] = {}
        with self._database.connect() as connection:
            for chunk in chunks(uids):
                found |= {row.uid: row.email_id for row in connection.execute(query.where(emails.c.uid.in_(chunk)))}
        return found

    def not_noted(self, account: str, mailbox: str, uidvalidity: int, uids: Collection[int]) -> dict[int, str]:
        """Return the messages seen at UIDs that a mailbox has no longer, by UID, without those noted as deleted."""
        first = select(emails.c.uid, emails.c.email_id).where(*_here(emails, account, mailbox, uidvalidity))
        further = (
            select(places.c.uid, emails.c.email_id)
            .join(places, places.c.email_id == emails.c.email_id)
            .where(*_here(places, account, mailbox, uidvalidity))
        )
        found: dict[int, str] = {}
        with self._database.connect() as connection:
            for chunk in chunks(sorted(uids)):
                for query, uid in ((first, emails.c.uid), (further, places.c.uid)):
                    rows = connection.execute(query.where(uid.in_(chunk), emails.c.deleted_at.is_(None)))
                    found |= {row.uid: row.email_id for row in rows}
        return found

    def not_noted_within(
        self, account: str, mailbox: str, uidvalidity: int, ranges: Sequence[tuple[int, int]], *, limit: int
    ) -> dict[int, tuple[str, str]]:
        """Return identity and SHA-256 of messages seen in ranges of UIDs, without those noted as deleted.

        By UID; of more than `limit` there are at least so many.
        """
        columns = (emails.c.email_id, emails.c.sha256)
        first = select(emails.c.uid, *columns).where(*_here(emails, account, mailbox, uidvalidity))
        further = select(places.c.uid, *columns).join(places, places.c.email_id == emails.c.email_id)
        further = further.where(*_here(places, account, mailbox, uidvalidity))
        found: dict[int, tuple[str, str]] = {}
        with self._database.connect() as connection:
            for start in range(0, len(ranges), _RANGES):
                some = ranges[start : start + _RANGES]
                for query, uid in ((first, emails.c.uid), (further, places.c.uid)):
                    within = or_(*(uid.between(low, high) for low, high in some))
                    rows = connection.execute(query.where(within, emails.c.deleted_at.is_(None)).limit(limit))
                    found |= {row.uid: (row.email_id, row.sha256) for row in rows}
                if len(found) >= limit:
                    break
        return found

    def places(self, email_ids: Collection[str]) -> dict[str, set[Location]]:
        """Return all places where messages were seen."""
        found: dict[str, set[Location]] = {}
        with self._database.connect() as connection:
            for chunk in chunks(sorted(email_ids)):
                for table in (emails, places):
                    columns = (table.c.email_id, table.c.mailbox, table.c.uidvalidity, table.c.uid)
                    for row in connection.execute(select(*columns).where(table.c.email_id.in_(chunk))):
                        found.setdefault(row.email_id, set()).add(Location(row.mailbox, row.uidvalidity, row.uid))
        return found

    def listed_again(
        self, account: str, mailbox: str, uidvalidity: int, listed: Collection[int], window: tuple[int, int]
    ) -> set[str]:
        """Return the messages that are noted as deleted and that the server lists, of a window of UIDs."""
        query = select(emails.c.uid, emails.c.email_id).where(*_here(emails, account, mailbox, uidvalidity))
        query = query.where(emails.c.uid.between(*window), emails.c.deleted_at.is_not(None))
        with self._database.connect() as connection:
            rows = connection.execute(query).all()
        return {row.email_id for row in rows if row.uid in listed} if rows else set()

    def note_deleted(self, mailbox: str, email_ids: Iterable[str]) -> int:
        """Note that a mailbox has these messages no longer; return how many were not noted yet."""
        with self._database.begin() as connection:
            return _note_presence(connection, sorted(set(email_ids)), mailbox, ChangeKind.DELETED)

    def note_restored(self, mailbox: str, email_ids: Iterable[str]) -> int:
        """Note that a mailbox has these messages again; return how many were noted as deleted."""
        with self._database.begin() as connection:
            return _note_presence(connection, sorted(set(email_ids)), mailbox, ChangeKind.RESTORED)


def note_seen_again(connection: Connection, places_found: Mapping[Location, str]) -> None:
    """Note which of these messages were deleted and are back, in the transaction that records where they are."""
    by_mailbox: dict[str, list[str]] = {}
    for location, email_id in places_found.items():
        by_mailbox.setdefault(location.mailbox, []).append(email_id)
    for mailbox, email_ids in by_mailbox.items():
        _note_presence(connection, sorted(set(email_ids)), mailbox, ChangeKind.RESTORED)


def _note_presence(connection: Connection, email_ids: Sequence[str], mailbox: str, kind: ChangeKind) -> int:
    count = 0
    deleted = kind is ChangeKind.DELETED
    for chunk in chunks(email_ids):
        before = emails.c.deleted_at.is_(None) if deleted else emails.c.deleted_at.is_not(None)
        change = update(emails).where(emails.c.email_id.in_(chunk), before)
        change = change.values(deleted_at=datetime.now(UTC) if deleted else None)
        rows = connection.execute(change.returning(emails.c.email_id, emails.c.account)).all()
        note_changes(connection, kind, [Change(row.account, row.email_id, {"mailbox": mailbox}) for row in rows])
        count += len(rows)
    return count


def _stored_marks(connection: Connection, email_ids: Sequence[str], *, for_update: bool) -> Iterator[Any]:
    columns = (emails.c.email_id, emails.c.account, emails.c.mailbox, emails.c.labels, emails.c.flags)
    for chunk in chunks(email_ids):
        query = select(*columns).where(emails.c.email_id.in_(chunk)).order_by(emails.c.email_id)
        yield from connection.execute(query.with_for_update() if for_update else query)


def _differs(row: Any, marks: Marks) -> bool:
    return any(_new(row, marks, name) is not None for name in ("labels", "flags"))


def _new(row: Any, marks: Marks, name: str) -> tuple[str, ...] | None:
    """Return the labels or flags to write; None where they are as they were."""
    new: tuple[str, ...] | None = getattr(marks, name)
    old: list[str] | None = getattr(row, name)
    if new is None:
        return None
    if name == "labels":
        return None if old == list(new) else new
    new = tuple(flag for flag in new if flag != _SESSION_FLAG)
    return None if {*(old or ())} - {_SESSION_FLAG} == {*new} else new


def _changes_of(row: Any, marks: Marks) -> Iterator[tuple[ChangeKind, Change]]:
    for name, kind in (("labels", ChangeKind.RELABELLED), ("flags", ChangeKind.FLAGGED)):
        new = _new(row, marks, name)
        old = set(getattr(row, name) or ()) - {_SESSION_FLAG}
        if new is None or old == set(new):
            continue  # the same, or in another order
        added, removed = sorted(set(new) - old), sorted(old - set(new))
        details = {name: list(new), "added": added, "removed": removed}
        trashed = any(each.casefold() in _TRASH for each in added)
        yield ChangeKind.TRASHED if trashed else kind, Change(row.account, row.email_id, details)


def _here(table: Any, account: str, mailbox: str, uidvalidity: int) -> tuple[Any, ...]:
    return (table.c.account == account, table.c.mailbox == mailbox, table.c.uidvalidity == uidvalidity)
