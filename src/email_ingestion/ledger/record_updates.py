"""Find records that an older parser made, and replace what parsing gives in them; nothing else of a message changes.

A row keeps its identity, its place, its labels and flags, its raw bytes and the time of its delivery. Deliveries to
sinks are not touched.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, delete, func, select, update

from email_ingestion.blobs import reference
from email_ingestion.ledger.change_feed import Change, note_changes
from email_ingestion.ledger.engine import Database
from email_ingestion.ledger.model import StoredEmail
from email_ingestion.ledger.outbox import ENVELOPE_COLUMNS, envelope_of
from email_ingestion.ledger.rows import attachment_rows, content_rows, email_row, insert_of, unpack_content
from email_ingestion.ledger.tables import attachments, contents, emails
from email_ingestion.records import PARSER_VERSION, ChangeKind, Envelope

_KEPT = {*(column.name for column in ENVELOPE_COLUMNS), "email_id", "raw_ref", "processed_at", "deleted_at"}
_PARSED = tuple(column for column in emails.columns if column.name not in _KEPT)
_ATTACHMENT = tuple(column for column in attachments.columns if column.name != "email_id")
_VERSION = emails.c.parser_version.name
_CHUNK = 500  # values in one IN (…)


@dataclass(frozen=True, slots=True)
class RecordChoice:
    """Which records are looked at."""

    account: str | None = None  # its configured name
    since: datetime | None = None  # with an INTERNALDATE at this instant or later
    current_too: bool = False  # also those that this parser made

    def conditions(self) -> list[ColumnElement[bool]]:
        """Return its conditions on `emails`."""
        found = [] if self.current_too else [emails.c.parser_version < PARSER_VERSION]
        if self.account is not None:
            found.append(emails.c.account == self.account)
        if self.since is not None:
            found.append(emails.c.internaldate >= self.since)
        return found


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """What the database has of a message: what parsing does not give, and what it gave."""

    envelope: Envelope
    raw_ref: str
    parsed: Mapping[str, Any]  # columns of `emails`
    attachments: tuple[Mapping[str, Any], ...]

    def changes(self, fresh: StoredEmail) -> list[str]:
        """Name the columns in which a fresh record differs, and "attachments" if those do."""
        row = email_row(fresh, datetime.now(UTC))
        names = [name for name, value in self.parsed.items() if name != _VERSION and row[name] != value]
        return names if _attachments_of(fresh) == list(self.attachments) else [*names, "attachments"]

    def lost_contents(self, fresh: StoredEmail) -> set[str]:
        """Return the SHA-256 of the attachments that a fresh record has no longer."""
        return {each["sha256"] for each in self.attachments} - {each["sha256"] for each in _attachments_of(fresh)}


class RecordUpdates:
    """The records of one ledger. Threads may share it; every method raises SinkUnavailable when it is down."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._insert = insert_of(database.engine)

    def count(self, choice: RecordChoice) -> int:
        """Count the records of a choice."""
        query = select(func.count()).select_from(emails).where(*choice.conditions())
        with self._database.connect() as connection:
            return connection.execute(query).scalar_one()

    def choose(self, choice: RecordChoice, after: str, limit: int) -> list[tuple[str, int]]:
        """Return identities of a choice and the sizes of their messages, in order, those behind `after`."""
        query = select(emails.c.email_id, emails.c.size).where(*choice.conditions(), emails.c.email_id > after)
        with self._database.connect() as connection:
            rows = connection.execute(query.order_by(emails.c.email_id).limit(limit))
            return [(row.email_id, row.size) for row in rows]

    def load(self, email_ids: Sequence[str]) -> list[StoredRecord]:
        """Return the records that are still there, in the order of their identities."""
        query = select(*ENVELOPE_COLUMNS, emails.c.email_id, emails.c.raw_ref, *_PARSED)
        files: dict[str, list[Mapping[str, Any]]] = {email_id: [] for email_id in email_ids}
        with self._database.connect() as connection:
            rows = connection.execute(query.where(emails.c.email_id.in_(email_ids)).order_by(emails.c.email_id)).all()
            parts = select(attachments).where(attachments.c.email_id.in_(email_ids)).order_by(attachments.c.position)
            for part in connection.execute(parts):
                files[part.email_id].append({column.name: getattr(part, column.name) for column in _ATTACHMENT})
        return [_stored_record(row, files[row.email_id]) for row in rows]

    def contents(self, refs: Iterable[str]) -> dict[str, bytes]:
        """Return those contents that are in the database, by reference, unproven."""
        wanted = {ref.removeprefix(reference("")): ref for ref in refs}
        query = select(contents).where(contents.c.sha256.in_(wanted))
        with self._database.connect() as connection:
            return {wanted[row.sha256]: unpack_content(row.data, row.size) for row in connection.execute(query)}

    def replace(
        self, changed: Sequence[StoredEmail], other_files: Collection[str], unchanged: Collection[str]
    ) -> set[str]:
        """Write fresh records, and this parser's version beside those that stay as they are, in one transaction.

        The attachments are written of the identities in `other_files`. Returns the identities that were there: messages
        that were deleted meanwhile stay deleted.
        """
        ordered = sorted(changed, key=lambda stored: stored.email.email_id)
        now = datetime.now(UTC)
        rows = {stored.email.email_id: _parsed_row(stored, now) for stored in ordered}
        packed = {stored.email.email_id: content_rows(stored.contents) for stored in ordered}
        with self._database.begin() as connection:
            there = _lock_rows(connection, sorted({*rows, *unchanged}))
            present = [stored for stored in ordered if stored.email.email_id in there]
            if present:
                names: dict[str, Any] = {column.name: bindparam(f"new_{column.name}") for column in _PARSED}
                statement = update(emails).where(emails.c.email_id == bindparam("id")).values(names)
                connection.execute(statement, [rows[stored.email.email_id] for stored in present])
                refiled = [stored for stored in present if stored.email.email_id in other_files]
                self._replace_attachments(connection, refiled, packed)
                made_anew = {"parser_version": PARSER_VERSION}
                changes = (Change(each.email.envelope.account, each.email.email_id, made_anew) for each in present)
                note_changes(connection, ChangeKind.REPARSED, changes)
            same = sorted(there & set(unchanged))
            if same:
                mark = update(emails).where(emails.c.email_id.in_(same)).values({_VERSION: PARSER_VERSION})
                connection.execute(mark)
        return there

    def _replace_attachments(
        self, connection: Connection, present: Sequence[StoredEmail], packed: Mapping[str, list[dict[str, Any]]]
    ) -> None:
        ids = [stored.email.email_id for stored in present]
        if not ids:
            return
        connection.execute(delete(attachments).where(attachments.c.email_id.in_(ids)))
        if parts := [row for stored in present for row in attachment_rows(stored.email)]:
            connection.execute(attachments.insert(), parts)
        if rows := {row["sha256"]: row for email_id in ids for row in packed[email_id]}:
            insert = self._insert(contents).on_conflict_do_nothing(index_elements=["sha256"])
            connection.execute(insert, [rows[sha256] for sha256 in sorted(rows)])

    def remove_unreferenced(self, sha256s: Iterable[str]) -> int:
        """Delete those contents that neither a message nor an attachment refers to; return how many."""
        removed = 0
        wanted = sorted(set(sha256s))
        for start in range(0, len(wanted), _CHUNK):
            refs = {reference(sha256): sha256 for sha256 in wanted[start : start + _CHUNK]}
            with self._database.begin() as connection:
                if connection.dialect.name == "postgresql":
                    # A worker inserts its attachments before their contents: it is done, or it will miss the content.
                    connection.exec_driver_sql("LOCK TABLE contents IN SHARE ROW EXCLUSIVE MODE")
                used = {
                    ref
                    for column in (emails.c.raw_ref, attachments.c.content_ref)
                    for ref in connection.execute(select(column).where(column.in_(refs))).scalars()
                }
                unused = [sha256 for ref, sha256 in refs.items() if ref not in used]
                removed += connection.execute(delete(contents).where(contents.c.sha256.in_(unused))).rowcount
        return removed


def _stored_record(row: Any, files: Sequence[Mapping[str, Any]]) -> StoredRecord:
    parsed = {column.name: getattr(row, column.name) for column in _PARSED}
    return StoredRecord(envelope_of(row), row.raw_ref, parsed, tuple(files))


def _parsed_row(stored: StoredEmail, now: datetime) -> dict[str, Any]:
    row = email_row(stored, now)
    return {"id": row["email_id"]} | {f"new_{column.name}": row[column.name] for column in _PARSED}


def _attachments_of(stored: StoredEmail) -> list[dict[str, Any]]:
    rows = attachment_rows(stored.email)
    return [{column.name: row[column.name] for column in _ATTACHMENT} for row in rows]


def _lock_rows(connection: Connection, email_ids: Sequence[str]) -> set[str]:
    """Lock the rows that are there, in the order in which a worker does; SQLite has locked the database."""
    query = select(emails.c.email_id).where(emails.c.email_id.in_(email_ids)).order_by(emails.c.email_id)
    return set(connection.execute(query.with_for_update()).scalars())
