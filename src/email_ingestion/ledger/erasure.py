"""Erase messages from the database, and remember by hashes what must not come back.

    emails, attachments, places, deliveries, purged  ─▶ gone, in the transaction that writes the tombstones
    contents                                         ─▶ `erased_contents`, until nothing else refers to them
    changes                                          ─▶ without details, and one more that says `erased`

A tombstone is a hash of an identity, or of a place with the size and date of its message: on a server without
X-GM-EXT-1 the place spares fetching the message to know it. A worker asks for the tombstones after it has inserted, so
that in whatever order two processes come, an erased message stays erased.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Text, and_, cast, delete, false, or_, select, update

from email_ingestion.blobs import reference, sha256_of
from email_ingestion.identity import tombstone
from email_ingestion.ledger.change_feed import Change, note_changes, strip_changes
from email_ingestion.ledger.engine import Database, database_now
from email_ingestion.ledger.model import ErasableMessage, ErasedRows, ErasureNotice, Hold, Location, content_identity
from email_ingestion.ledger.outbox import ENVELOPE_COLUMNS, envelope_of
from email_ingestion.ledger.rows import chunks, insert_of
from email_ingestion.ledger.tables import (
    attachments,
    contents,
    deliveries,
    emails,
    erased,
    erased_contents,
    erasure_notices,
    holds,
    places,
    purged,
)
from email_ingestion.records import ChangeKind, Envelope, RawMessage, email_id

WINDOW = 2_000  # messages that one query looks at: a statement has a time limit
_HOLD = tuple(each.name for each in fields(Hold))


@dataclass(frozen=True, slots=True)
class AgeLimit:
    """The INTERNALDATE before which mail of an account, or of a route with so many days, is old enough."""

    before: datetime
    account: str | None = None  # for its mail of which no route says anything
    route_days: int | None = None

    def condition(self) -> ColumnElement[bool]:
        """Return it as a condition on `emails`."""
        days = emails.c.retention_days
        whose = days == self.route_days if self.account is None else (emails.c.account == self.account) & days.is_(None)
        return and_(whose, emails.c.internaldate < self.before)


@dataclass(frozen=True, slots=True)
class MailChoice:
    """Which messages are looked at; `near` is a text that stands in an address field of each, whatever its case."""

    account: str | None = None
    email_ids: tuple[str, ...] | None = None
    before: datetime | None = None  # with an INTERNALDATE before this instant
    near: str | None = None
    limits: tuple[AgeLimit, ...] | None = None  # one of them must be passed

    def conditions(self) -> list[ColumnElement[bool]]:
        """Return its conditions on `emails`."""
        found: list[ColumnElement[bool]] = []
        if self.account is not None:
            found.append(emails.c.account == self.account)
        if self.email_ids is not None:
            found.append(emails.c.email_id.in_(self.email_ids))
        if self.before is not None:
            found.append(emails.c.internaldate < self.before)
        if self.near is not None:
            texts = (emails.c.from_addr, *(cast(emails.c[name], Text) for name in ("to_addrs", "cc_addrs", "headers")))
            found.append(or_(*(each.icontains(self.near, autoescape=True) for each in texts)))
        if self.limits is not None:
            found.append(or_(false(), *(limit.condition() for limit in self.limits)))
        return found


class LedgerErasure:
    """The erasures of one ledger. Threads may share it; every method raises SinkUnavailable when it is down."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._insert = insert_of(database.engine)

    def find(self, choice: MailChoice, after: str = "") -> Iterator[ErasableMessage]:
        """Yield the messages of a choice in the order of their identities, those behind `after`."""
        columns = (*ENVELOPE_COLUMNS, emails.c.email_id, emails.c.raw_ref, emails.c.from_addr)
        query = select(*columns, emails.c.to_addrs, emails.c.cc_addrs, emails.c.headers).where(*choice.conditions())
        while (last := self._end_of_window(after)) is not None:
            window = (emails.c.email_id > after, emails.c.email_id <= last)
            with self._database.connect() as connection:
                rows = connection.execute(query.where(*window).order_by(emails.c.email_id)).all()
            further = self._places([row.email_id for row in rows])
            for row in rows:
                people = [*(row.to_addrs or ()), *(row.cc_addrs or ())]
                yield ErasableMessage(
                    envelope_of(row),
                    row.raw_ref,
                    tuple(further.get(row.email_id, ())),
                    row.from_addr,
                    tuple(each["addr"] for each in people),
                    tuple((name, value) for name, value in row.headers),
                )
            after = last

    def _end_of_window(self, after: str) -> str | None:
        query = select(emails.c.email_id).where(emails.c.email_id > after).order_by(emails.c.email_id)
        with self._database.connect() as connection:
            ids = connection.execute(query.limit(WINDOW)).scalars().all()
        return ids[-1] if ids else None

    def identities(self) -> Iterator[tuple[str, str, str]]:
        """Yield identity, account and SHA-256 of every message."""
        after = ""
        query = select(emails.c.email_id, emails.c.account, emails.c.sha256).order_by(emails.c.email_id)
        while True:
            with self._database.connect() as connection:
                rows = connection.execute(query.where(emails.c.email_id > after).limit(WINDOW)).all()
            yield from ((row.email_id, row.account, row.sha256) for row in rows)
            if len(rows) < WINDOW:
                return
            after = rows[-1].email_id

    def route_days(self) -> list[int]:
        """Return the numbers of days that routes have given to messages."""
        query = select(emails.c.retention_days).where(emails.c.retention_days.is_not(None)).distinct()
        with self._database.connect() as connection:
            return sorted(connection.execute(query).scalars())

    def add_hold(self, hold: Hold) -> None:
        """Add a hold."""
        with self._database.begin() as connection:
            values = {name: getattr(hold, name) for name in _HOLD}
            connection.execute(holds.insert().values(**values))

    def release_hold(self, hold_id: str, user: str) -> bool:
        """Release a hold; its value is forgotten. Returns whether it was there and not released."""
        mine = (holds.c.hold_id == hold_id, holds.c.released_at.is_(None))
        with self._database.begin() as connection:
            change = update(holds).where(*mine).values(released_at=datetime.now(UTC), released_by=user, value="")
            return connection.execute(change).rowcount > 0

    def holds(self) -> list[Hold]:
        """Return the holds that are not released, oldest first."""
        query = select(*(holds.c[name] for name in _HOLD)).where(holds.c.released_at.is_(None))
        with self._database.connect() as connection:
            return [Hold(*row) for row in connection.execute(query.order_by(holds.c.created_at)).all()]

    def erased(self, texts: Iterable[str]) -> set[str]:
        """Return those of the identities and places that were erased."""
        by_hash = {tombstone(text): text for text in texts}
        if not by_hash:
            return set()
        with self._database.connect() as connection:
            return {by_hash[found] for found in find_tombstones(connection, list(by_hash))}

    def erased_messages(self, messages: Iterable[RawMessage]) -> set[str]:
        """Return the identities of those messages that were erased, by themselves or by their bytes."""
        with self._database.connect() as connection:
            return erased_among(connection, (message.envelope for message in messages))

    def tombstones(self) -> Iterator[str]:
        """Yield all tombstones."""
        after = ""
        query = select(erased.c.tombstone).order_by(erased.c.tombstone)
        while True:
            with self._database.connect() as connection:
                found = connection.execute(query.where(erased.c.tombstone > after).limit(WINDOW)).scalars().all()
            yield from found
            if len(found) < WINDOW:
                return
            after = found[-1]

    def add_tombstones(self, tombstones: Iterable[str]) -> None:
        """Remember tombstones that came from elsewhere: from the file, from a backup."""
        wanted = sorted(set(tombstones))
        for start in range(0, len(wanted), WINDOW):
            with self._database.begin() as connection:
                self._add(connection, erased, wanted[start : start + WINDOW])

    def twins(self, messages: Collection[ErasableMessage]) -> set[str]:
        """Return the content identities of `messages` that another message, which is not among them, has as well."""
        ids = {message.email_id for message in messages}
        by_bytes = {(each.envelope.account, each.envelope.sha256) for each in messages}
        query = select(emails.c.email_id, emails.c.account, emails.c.sha256)
        found = set()
        with self._database.connect() as connection:
            for chunk in chunks(sorted({sha256 for _, sha256 in by_bytes})):
                for row in connection.execute(query.where(emails.c.sha256.in_(chunk))):
                    if row.email_id not in ids and (row.account, row.sha256) in by_bytes:
                        found.add(email_id(row.account, None, row.sha256))
        return found

    def withdraw_deliveries(self, email_ids: Collection[str]) -> set[str]:
        """Let no sink get these messages any more; return the sinks that one is being handed to now."""
        waiting = deliveries.c.state == "waiting"
        busy: set[str] = set()
        with self._database.begin() as connection:
            now = database_now(connection)
            for chunk in chunks(sorted(email_ids)):
                mine = (deliveries.c.email_id.in_(chunk), waiting)
                free = or_(deliveries.c.holder.is_(None), deliveries.c.due <= now)
                change = update(deliveries).where(*mine, free).values(state="dead", due=None, holder=None)
                connection.execute(change)
                busy |= set(connection.execute(select(deliveries.c.sink).where(*mine)).scalars())
        return busy

    def erase(
        self, messages: Sequence[ErasableMessage], tombstones: Collection[str], tell: Collection[str] = ()
    ) -> ErasedRows:
        """Remove messages and write their tombstones in one transaction; their contents are noted for removal.

        So are those of the sinks `tell` that have got one, or may have: they are to be told.
        """
        rows = ErasedRows()
        ids = sorted({message.email_id for message in messages})
        digests = {sha256_of(message.raw_ref) for message in messages if message.raw_ref}
        with self._database.begin() as connection:
            if connection.dialect.name == "postgresql":
                # A worker has inserted and committed, or it waits, and finds the tombstones after its insert.
                connection.exec_driver_sql("LOCK TABLE emails IN SHARE ROW EXCLUSIVE MODE")
            self._add(connection, erased, sorted(tombstones))
            for chunk in chunks(ids):
                refs = select(emails.c.raw_ref).where(emails.c.email_id.in_(chunk))
                digests |= set(map(sha256_of, connection.execute(refs).scalars()))
                parts = select(attachments.c.sha256).where(attachments.c.email_id.in_(chunk))
                digests |= set(connection.execute(parts).scalars())
            self.note_contents(connection, digests)
            for chunk in chunks(ids if tell else []):
                given = (
                    deliveries.c.email_id.in_(chunk),
                    deliveries.c.sink.in_(sorted(tell)),
                    deliveries.c.attempts > 0,
                )
                now = datetime.now(UTC)
                owed = connection.execute(select(deliveries.c.email_id, deliveries.c.sink).where(*given)).all()
                if owed:
                    insert = self._insert(erasure_notices).on_conflict_do_nothing(index_elements=["email_id", "sink"])
                    rows_of = [{"email_id": each.email_id, "sink": each.sink, "erased_at": now} for each in owed]
                    connection.execute(insert, rows_of)
            for chunk in chunks(ids):
                # Attachments first: their index is found through the row of the message.
                rows.attachments += _delete(connection, attachments, chunk)
                for table in (places, deliveries, purged):
                    rows.further[table.name] = rows.further.get(table.name, 0) + _delete(connection, table, chunk)
                gone = delete(emails).where(emails.c.email_id.in_(chunk)).returning(emails.c.email_id, emails.c.account)
                removed = connection.execute(gone).all()
                rows.messages += len(removed)
                strip_changes(connection, chunk)
                gone_ids = sorted((row.account, row.email_id) for row in removed)
                note_changes(connection, ChangeKind.ERASED, (Change(*each) for each in gone_ids))
        return rows

    def pending_notices(self, sink: str, limit: int = WINDOW, *, before: datetime | None = None) -> list[ErasureNotice]:
        """Return what a sink is still to be told, oldest first; of what was erased `before` then, or all."""
        columns = (erasure_notices.c.email_id, erasure_notices.c.sink, erasure_notices.c.erased_at)
        query = select(*columns).where(erasure_notices.c.sink == sink).order_by(erasure_notices.c.erased_at)
        if before is not None:
            query = query.where(erasure_notices.c.erased_at < before)
        with self._database.connect() as connection:
            return [ErasureNotice(*row) for row in connection.execute(query.limit(limit)).all()]

    def forget_notice(self, notice: ErasureNotice) -> None:
        """Note that a sink was told, or refuses to be."""
        mine = (erasure_notices.c.email_id == notice.email_id, erasure_notices.c.sink == notice.sink)
        with self._database.begin() as connection:
            connection.execute(delete(erasure_notices).where(*mine))

    def pending_contents(self) -> list[str]:
        """Return the SHA-256 of the contents that are still to be removed, or may stay because others have them."""
        with self._database.connect() as connection:
            return list(connection.execute(select(erased_contents.c.sha256)).scalars())

    def note_contents(self, connection: Connection, sha256s: Collection[str]) -> None:
        """Note contents that are to be removed unless something refers to them."""
        self._add(connection, erased_contents, sorted(sha256s))

    def forget_contents(self, sha256s: Collection[str]) -> None:
        """Note that these contents are gone, or belong to others."""
        with self._database.begin() as connection:
            for chunk in chunks(sorted(sha256s)):
                connection.execute(delete(erased_contents).where(erased_contents.c.sha256.in_(chunk)))

    def remove_contents(self, sha256s: Collection[str], in_redis: Collection[str]) -> tuple[int, list[str]]:
        """Remove those of the noted contents that nothing refers to; `in_redis` are references that entries have.

        Returns how many were removed from the database, and those that must be in the blob store.
        """
        removed, left = 0, []
        for chunk in chunks(sorted(sha256s)):
            refs = {reference(sha256): sha256 for sha256 in chunk}
            with self._database.begin() as connection:
                if connection.dialect.name == "postgresql":
                    # As in `RecordUpdates.remove_unreferenced`: attachments are inserted before their contents.
                    connection.exec_driver_sql("LOCK TABLE contents IN SHARE ROW EXCLUSIVE MODE")
                used = {refs[ref] for ref in in_redis if ref in refs}
                for column in (emails.c.raw_ref, attachments.c.content_ref):
                    found = connection.execute(select(column).where(column.in_(refs))).scalars()
                    used |= {refs[ref] for ref in found}
                unused = [sha256 for sha256 in chunk if sha256 not in used]
                gone = delete(contents).where(contents.c.sha256.in_(unused)).returning(contents.c.sha256)
                inside = set(connection.execute(gone).scalars())
                done = sorted(used | inside)
                connection.execute(delete(erased_contents).where(erased_contents.c.sha256.in_(done)))
            removed += len(inside)
            left += [sha256 for sha256 in unused if sha256 not in inside]
        return removed, left

    def _add(self, connection: Connection, table: Any, keys: Sequence[str]) -> None:
        column: Column[str] = next(iter(table.primary_key.columns))
        if keys:
            now = datetime.now(UTC)
            insert = self._insert(table).on_conflict_do_nothing(index_elements=[column.name])
            connection.execute(insert, [{column.name: key, "erased_at": now} for key in keys])

    def _places(self, email_ids: list[str]) -> dict[str, list[Location]]:
        found: dict[str, list[Location]] = {}
        columns = (places.c.email_id, places.c.mailbox, places.c.uidvalidity, places.c.uid)
        with self._database.connect() as connection:
            for chunk in chunks(email_ids):
                for row in connection.execute(select(*columns).where(places.c.email_id.in_(chunk))):
                    found.setdefault(row.email_id, []).append(Location(row.mailbox, row.uidvalidity, row.uid))
        return found


def find_tombstones(connection: Connection, tombstones: Sequence[str]) -> set[str]:
    """Return those of the tombstones that are there."""
    found: set[str] = set()
    for chunk in chunks(tombstones):
        found |= set(connection.execute(select(erased.c.tombstone).where(erased.c.tombstone.in_(chunk))).scalars())
    return found


def erased_among(connection: Connection, envelopes: Iterable[Envelope]) -> set[str]:
    """Return the identities of messages that were erased, by themselves or by their bytes."""
    by_hash: dict[str, str] = {}
    for envelope in envelopes:
        for text in (envelope.email_id, content_identity(envelope)):
            by_hash[tombstone(text)] = envelope.email_id
    return {by_hash[found] for found in find_tombstones(connection, list(by_hash))}


def _delete(connection: Connection, table: Any, email_ids: Sequence[str]) -> int:
    return connection.execute(delete(table).where(table.c.email_id.in_(email_ids))).rowcount
