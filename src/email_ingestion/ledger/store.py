"""The ledger: records each message once, and answers queries about recorded messages."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    delete,
    exists,
    false,
    func,
    select,
)

from email_ingestion.blobs import BlobStore, sha256_of
from email_ingestion.blobs.reference import REMEDY
from email_ingestion.errors import ContentLost, OperationFailed, SinkUnavailable
from email_ingestion.ledger.accounts import StoredAccounts
from email_ingestion.ledger.api_tokens import ApiTokens
from email_ingestion.ledger.change_feed import Change, ChangeFeed, note_changes
from email_ingestion.ledger.conversations import Conversations
from email_ingestion.ledger.database_errors import translate_open_errors
from email_ingestion.ledger.engine import (
    Database,
    check_server,
    database_now,
    describe_database,
    open_engine,
    open_impatient_engine,
)
from email_ingestion.ledger.erasure import LedgerErasure, erased_among
from email_ingestion.ledger.fingerprint import sqlite_path
from email_ingestion.ledger.mail_pages import MailPages
from email_ingestion.ledger.mail_statistics import MailStatistics
from email_ingestion.ledger.mark import LedgerMark, read_mark
from email_ingestion.ledger.message_views import MessageViews
from email_ingestion.ledger.migrate import has_schema, migrate, pending_revision
from email_ingestion.ledger.model import DeliveredName, Location, RecordedMessage, StoredEmail, StoredFacts
from email_ingestion.ledger.outbox import ENVELOPE_COLUMNS, Outbox, envelope_of
from email_ingestion.ledger.owed_mail import OwedMail
from email_ingestion.ledger.record_updates import RecordUpdates
from email_ingestion.ledger.resends import Resends
from email_ingestion.ledger.rows import PreparedBatch, attachment_rows, chunks, insert_of, unpack_content
from email_ingestion.ledger.search_hits import MailSearch
from email_ingestion.ledger.server_state import ServerState, note_seen_again
from email_ingestion.ledger.stored_contents import StoredContents
from email_ingestion.ledger.tables import attachments, contents, deliveries, emails, places, purged
from email_ingestion.ledger.tables import erased as erased_table
from email_ingestion.ledger.told_changes import ToldChanges
from email_ingestion.records import ChangeKind

_PAGE = 1_000  # rows of one query of many
NOT_TOLD = ("42501", "42883", "0A000")  # insufficient privilege, no such function, not supported
NOTHING_DELIVERED = (
    "nothing was delivered yet, or DATABASE_URL or this folder is another (`email-ingestion config show`)"
)
PING_SECONDS = 5.0  # a database that does not take a transaction within this time is away


def open_ledger(url: str) -> Ledger:
    """Open the ledger at `url`; create or migrate it if necessary.

    Raises ConfigurationError when a setting or a permission is wrong or the schema is newer than this code,
    SinkUnavailable when the database cannot be reached now.
    """
    engine = open_engine(url)
    with _disposed_on_failure(engine):
        check_server(engine)
        migrate(engine)
    return Ledger(engine, partial(migrate, engine))


def open_existing_ledger(url: str) -> Ledger:
    """Open the ledger for a look at what was delivered: where there is none, none is made.

    Raises OperationFailed where there is none, and the errors of `open_ledger`.
    """
    if (file := sqlite_path(url)) and not file.exists():
        raise OperationFailed(f"{file} is not there yet: {NOTHING_DELIVERED}")
    engine = open_engine(url)
    with _disposed_on_failure(engine):
        check_server(engine)
        if not has_schema(engine):
            raise OperationFailed(f"{describe_database(engine)} holds no tables of ours: {NOTHING_DELIVERED}")
        migrate(engine)
    return Ledger(engine)


def open_impatient_ledger(url: str) -> Ledger:
    """Open the ledger for who must not wait: locked or silent, it is unavailable after PATIENCE_SECONDS.

    Raises the errors of `open_ledger`, soon.
    """
    engine = open_impatient_engine(url)
    with _disposed_on_failure(engine):
        check_server(engine)
        with translate_open_errors(describe_database(engine)):
            is_outdated = pending_revision(engine) is not None
        if is_outdated:
            migrate(engine)
    return Ledger(engine, partial(migrate, engine))


@contextmanager
def _disposed_on_failure(engine: Engine) -> Iterator[None]:
    try:
        yield
    except BaseException:
        engine.dispose()
        raise


def content_of(ref: str, ledger: Ledger, blobs: BlobStore) -> bytes:
    """Return the bytes under `ref` from the database or the blob store. Raises the errors of `BlobStore.get`."""
    content = ledger.content(ref)
    return blobs.get(ref) if content is None else content


class Ledger:
    """The delivered messages. Threads may share it; every method raises SinkUnavailable when the database is down."""

    def __init__(self, engine: Engine, make_tables: Callable[[], None] | None = None) -> None:
        """`make_tables` is called when somebody removed the database; without it that is an error."""
        self._database = Database(engine, make_tables)
        self._insert = insert_of(engine)
        self.outbox = Outbox(self._database)
        self.records = RecordUpdates(self._database)
        self.resends = Resends(self._database)
        self.owed = OwedMail(self._database)
        self.contents = StoredContents(self._database)
        self.erasure = LedgerErasure(self._database)
        self.statistics = MailStatistics(self._database)
        self.views = MessageViews(self._database)
        self.conversations = Conversations(self._database)
        self.api_tokens = ApiTokens(self._database)
        self.pages = MailPages(self._database)
        self.mail_search = MailSearch(self._database, self.pages)
        self.accounts = StoredAccounts(self._database)
        self.server_state = ServerState(self._database)
        self.changes = ChangeFeed(self._database)
        self.told_changes = ToldChanges(self._database, self.changes)

    def record(self, batch: Sequence[StoredEmail]) -> set[str]:
        """Write the new messages of `batch` in one transaction; return their identities.

        Raises PermanentError when the database refuses a value; nothing of the batch is written then.
        """
        prepared = PreparedBatch.from_emails(batch)
        with self._database.begin() as connection:
            new = self._write(connection, prepared)
            if len(new) < len(batch):
                self._record_copies(connection, batch)
            return new

    def record_and_roll_back(self, batch: Sequence[StoredEmail]) -> None:
        """Do the work of `record`, for synthetic messages, and roll it back. Raises the same errors."""
        prepared = PreparedBatch.from_emails(batch)
        with self._database.begin() as connection:
            self._write(connection, prepared)
            connection.rollback()

    def _write(self, connection: Connection, batch: PreparedBatch) -> set[str]:
        new = self._insert_emails(connection, batch.rows)
        erased = self._take_back_erased(connection, batch.ordered, new)
        new -= erased
        new_messages = [stored for stored in batch.ordered if stored.email.email_id in new]
        self._insert_parts(connection, new_messages, batch.packed)
        self._insert_deliveries(connection, [each for each in batch.ordered if each.email.email_id not in erased], new)
        born = (Change(each.email.envelope.account, each.email.email_id) for each in new_messages)
        note_changes(connection, ChangeKind.BORN, born)
        return new

    def _take_back_erased(self, connection: Connection, batch: Sequence[StoredEmail], new: set[str]) -> set[str]:
        """Delete what was just inserted and had been erased; return the identities of the batch that were.

        They are asked for after the insert: an erasure that came meanwhile was waited for there.
        """
        erased = erased_among(connection, (stored.email.envelope for stored in batch))
        if erased:
            connection.execute(delete(emails).where(emails.c.email_id.in_(sorted(erased & new))))
            large = {each for stored in batch if stored.email.email_id in erased for each in _in_blob_store(stored)}
            self.erasure.note_contents(connection, large)
        return erased

    def _record_copies(self, connection: Connection, batch: Sequence[StoredEmail]) -> None:
        """Record where a message lies once more in its mailbox: moved within it, or copied, it came again.

        Where the first copy was deleted it is there still. On Gmail no message has two places in a mailbox.
        """
        envelopes = [each.email.envelope for each in batch if each.email.envelope.gm_msgid is None]
        columns = (emails.c.email_id, emails.c.mailbox, emails.c.uidvalidity, emails.c.uid)
        ids = sorted({each.email_id for each in envelopes})
        rows = connection.execute(select(*columns).where(emails.c.email_id.in_(ids))).all() if ids else ()
        first = {row.email_id: Location(row.mailbox, row.uidvalidity, row.uid) for row in rows}
        copies: dict[str, dict[Location, str]] = {}
        for each in envelopes:
            at = Location(each.mailbox, each.uidvalidity, each.uid)
            known = first.get(each.email_id, at)
            if at != known and at.mailbox == known.mailbox:
                copies.setdefault(each.account, {})[at] = each.email_id
        for account in sorted(copies):
            self._record_locations(connection, account, copies[account])

    def _insert_emails(self, connection: Connection, rows: list[dict[str, Any]]) -> set[str]:
        if not rows:
            return set()
        insert = self._insert(emails).on_conflict_do_nothing(index_elements=["email_id"])
        return set(connection.execute(insert.returning(emails.c.email_id), rows).scalars())

    def _insert_parts(
        self, connection: Connection, new_messages: Sequence[StoredEmail], packed: dict[str, list[dict[str, Any]]]
    ) -> None:
        parts = [row for stored in new_messages for row in attachment_rows(stored.email)]
        if parts:
            connection.execute(attachments.insert(), parts)
        content_rows = {row["sha256"]: row for stored in new_messages for row in packed[stored.email.email_id]}
        if content_rows:
            insert = self._insert(contents).on_conflict_do_nothing(index_elements=["sha256"])
            connection.execute(insert, [content_rows[sha256] for sha256 in sorted(content_rows)])

    def _insert_deliveries(self, connection: Connection, batch: Sequence[StoredEmail], new: set[str]) -> None:
        """Insert deliveries for new messages, and for a known one only to the sink whose dead letter was replayed."""
        owed: list[dict[str, Any]] = [
            {"email_id": email_id, "sink": sink, "state": "waiting", "attempts": 0}
            for stored in batch
            for email_id in (stored.email.email_id,)
            for sink in (stored.owed_to if email_id in new else filter(None, (stored.only_sink,)))
        ]
        if not owed:
            return
        now = database_now(connection)
        owed = [{**row, "due": now, "changed_at": now} for row in owed]
        insert = self._insert(deliveries)
        values = {name: insert.excluded[name] for name in ("state", "due", "attempts", "changed_at")}
        # Update dead deliveries only: a delivered or waiting message must not be delivered once more.
        upsert = insert.on_conflict_do_update(
            index_elements=["email_id", "sink"], set_=values, where=deliveries.c.state == "dead"
        )
        connection.execute(upsert, owed)

    def known_gm_msgids(self, account: str, gm_msgids: Iterable[int]) -> set[int]:
        """Return those of `gm_msgids` that were delivered for `account`, from whatever mailbox."""
        column = emails.c.gm_msgid
        return set(self._select(column, gm_msgids, emails.c.account == account))

    def known_ids(self, email_ids: Iterable[str]) -> set[str]:
        """Return those of `email_ids` that were delivered."""
        return set(self._select(emails.c.email_id, email_ids))

    def known_uids(
        self, account: str, mailbox: str, uidvalidity: int, low: int, high: int, *, limit: int | None = None
    ) -> set[int]:
        """Return the UIDs from `low` to `high` delivered from this mailbox, the `limit` lowest of them.

        Others may have come from elsewhere.
        """
        where = (
            emails.c.account == account,
            emails.c.mailbox == mailbox,
            emails.c.uidvalidity == uidvalidity,
            emails.c.uid.between(low, high),
        )
        with self._database.connect() as connection:
            query = select(emails.c.uid).where(*where).order_by(emails.c.uid).limit(limit)
            return set(connection.execute(query).scalars())

    def first_locations(self, email_ids: Iterable[str]) -> dict[str, Location]:
        """Return for each delivered identity of `email_ids` the location it was first delivered from."""
        columns = (emails.c.email_id, emails.c.mailbox, emails.c.uidvalidity, emails.c.uid)
        found: dict[str, Location] = {}
        with self._database.connect() as connection:
            for chunk in chunks(list(email_ids)):
                rows = connection.execute(select(*columns).where(emails.c.email_id.in_(chunk)))
                found |= {row.email_id: Location(row.mailbox, row.uidvalidity, row.uid) for row in rows}
        return found

    def other_locations(
        self, account: str, mailbox: str, uidvalidity: int, low: int, high: int, *, limit: int | None = None
    ) -> dict[int, Location]:
        """Return UIDs from `low` to `high` of `record_locations`, each with its message's first location.

        With a `limit` they are the lowest.
        """
        query = (
            select(places.c.uid.label("here"), emails.c.mailbox, emails.c.uidvalidity, emails.c.uid)
            .join(emails, emails.c.email_id == places.c.email_id)
            .where(places.c.account == account, places.c.mailbox == mailbox, places.c.uidvalidity == uidvalidity)
            .where(places.c.uid.between(low, high))
            .order_by(places.c.uid)
            .limit(limit)
        )
        with self._database.connect() as connection:
            return {row.here: Location(row.mailbox, row.uidvalidity, row.uid) for row in connection.execute(query)}

    def recorded_at(
        self, account: str, mailbox: str, uidvalidity: int, uids: Sequence[int]
    ) -> dict[int, list[RecordedMessage]]:
        """Return the messages that were recorded for each of these UIDs: several where a UID was given out anew."""
        columns = (emails.c.internaldate, emails.c.size, emails.c.gm_msgid, emails.c.message_id, emails.c.sha256)
        first = select(emails.c.uid.label("here"), *columns).where(
            emails.c.account == account, emails.c.mailbox == mailbox, emails.c.uidvalidity == uidvalidity
        )
        further = (
            select(places.c.uid.label("here"), *columns)
            .join(emails, emails.c.email_id == places.c.email_id)
            .where(places.c.account == account, places.c.mailbox == mailbox, places.c.uidvalidity == uidvalidity)
        )
        found: dict[int, list[RecordedMessage]] = {}
        with self._database.connect() as connection:
            for chunk in chunks(list(uids)):
                for query, uid in ((first, emails.c.uid), (further, places.c.uid)):
                    for here, *facts in connection.execute(query.where(uid.in_(chunk))):
                        found.setdefault(here, []).append(RecordedMessage(*facts))
        return found

    def newest_uids(
        self, account: str, mailbox: str, uidvalidity: int, low: int, high: int, *, count: int
    ) -> list[int]:
        """Return the `count` highest UIDs from `low` to `high` from which messages were delivered."""
        query = (
            select(emails.c.uid)
            .where(emails.c.account == account, emails.c.mailbox == mailbox, emails.c.uidvalidity == uidvalidity)
            .where(emails.c.uid.between(low, high))
            .order_by(emails.c.uid.desc())
            .limit(count)
        )
        with self._database.connect() as connection:
            return sorted(set(connection.execute(query).scalars()))

    def record_locations(self, account: str, found: Mapping[Location, str]) -> None:
        """Record further locations of delivered messages, by identity."""
        if found:
            with self._database.begin() as connection:
                self._record_locations(connection, account, found)

    def _record_locations(self, connection: Connection, account: str, found: Mapping[Location, str]) -> None:
        rows = [
            {
                "account": account,
                "mailbox": location.mailbox,
                "uidvalidity": location.uidvalidity,
                "uid": location.uid,
                "email_id": email_id,
            }
            for location, email_id in sorted(found.items(), key=lambda item: (item[0].mailbox, item[0].uid))
        ]
        key = [places.c.account, places.c.mailbox, places.c.uidvalidity, places.c.uid]
        insert = self._insert(places)
        # Replace an old row: its message may have been deleted from the ledger since.
        upsert = insert.on_conflict_do_update(index_elements=key, set_={"email_id": insert.excluded.email_id})
        connection.execute(upsert, rows)
        note_seen_again(connection, found)

    def record_purged(self, email_ids: Iterable[str]) -> None:
        """Record that an operator gave these messages up."""
        now = datetime.now(UTC)
        rows = [{"email_id": email_id, "purged_at": now} for email_id in sorted(set(email_ids))]
        if rows:
            insert = self._insert(purged).on_conflict_do_nothing(index_elements=["email_id"])
            with self._database.begin() as connection:
                connection.execute(insert, rows)

    def purged(self, email_ids: Iterable[str]) -> set[str]:
        """Return those of `email_ids` that an operator gave up, or had erased."""
        wanted = list(email_ids)
        return {*self._select(purged.c.email_id, wanted), *self.erasure.erased(wanted)}

    def has_mail(self, account: str) -> bool:
        """Tell whether any message of `account` was delivered, or any message of any account given up or erased."""
        given_up = exists().select_from(purged) | exists().select_from(erased_table)
        query = select(exists().where(emails.c.account == account) | given_up)
        with self._database.connect() as connection:
            return bool(connection.execute(query).scalar_one())

    def first_delivery_date(self, account: str, mailbox: str) -> datetime | None:
        """Return the INTERNALDATE of the first message delivered from a mailbox; None before there is one."""
        first = (
            select(emails.c.uidvalidity, func.min(emails.c.uid).label("uid"))
            .where(emails.c.account == account, emails.c.mailbox == mailbox)
            .group_by(emails.c.uidvalidity)
            .subquery()
        )
        query = select(func.min(emails.c.internaldate)).where(
            emails.c.account == account,
            emails.c.mailbox == mailbox,
            emails.c.uidvalidity == first.c.uidvalidity,
            emails.c.uid == first.c.uid,
        )
        with self._database.connect() as connection:
            date: datetime | None = connection.execute(query).scalar_one()
        return date

    def _select(self, column: ColumnElement[Any], values: Iterable[Any], *where: ColumnElement[bool]) -> Iterator[Any]:
        with self._database.connect() as connection:
            for chunk in chunks(list(values)):
                yield from connection.execute(select(column).where(column.in_(chunk), *where)).scalars()

    def count(self, account: str | None = None) -> int:
        """Count the delivered messages, of all accounts or of one."""
        query = select(func.count()).select_from(emails)
        if account is not None:
            query = query.where(emails.c.account == account)
        with self._database.connect() as connection:
            return connection.execute(query).scalar_one()

    def delivered_names(self, account: str) -> Iterator[DeliveredName]:
        """Yield the delivered messages of an account by their identities, a page at a time."""
        columns = (emails.c.email_id, emails.c.message_id, emails.c.internaldate, emails.c.labels)
        last = ""
        while True:
            query = select(*columns).where(emails.c.account == account, emails.c.email_id > last)
            with self._database.connect() as connection:
                rows = connection.execute(query.order_by(emails.c.email_id).limit(_PAGE)).all()
            for row in rows:
                yield DeliveredName(row.email_id, row.message_id, row.internaldate, tuple(row.labels))
            if len(rows) < _PAGE:
                return
            last = rows[-1].email_id

    def referenced(self, refs: Iterable[str]) -> set[str]:
        """Return the references of `refs` that a message or an attachment uses."""
        wanted = list(refs)
        return {*self._select(emails.c.raw_ref, wanted), *self._select(attachments.c.content_ref, wanted)}

    def stored_facts(self, email_id: str) -> StoredFacts | None:
        """Return the facts about a message that are not in its raw bytes; None when it was not delivered."""
        query = select(*ENVELOPE_COLUMNS, emails.c.raw_ref, emails.c.tags, emails.c.priority)
        with self._database.connect() as connection:
            row = connection.execute(query.where(emails.c.email_id == email_id)).one_or_none()
        return StoredFacts(envelope_of(row), row.raw_ref, tuple(row.tags or ()), row.priority) if row else None

    def processed_times(self, email_ids: Iterable[str]) -> dict[str, datetime]:
        """Return the time of delivery of each delivered identity of `email_ids`."""
        found: dict[str, datetime] = {}
        with self._database.connect() as connection:
            for chunk in chunks(list(email_ids)):
                query = select(emails.c.email_id, emails.c.processed_at).where(emails.c.email_id.in_(chunk))
                found |= {row.email_id: row.processed_at for row in connection.execute(query)}
        return found

    def raw_ref(self, email_id: str) -> str | None:
        """Return the reference of a message's raw bytes for `content_of`; None when it was not delivered."""
        query = select(emails.c.raw_ref).where(emails.c.email_id == email_id)
        with self._database.connect() as connection:
            return connection.execute(query).scalar_one_or_none()

    def content(self, ref: str) -> bytes | None:
        """Return the bytes under `ref` if they are in the database. Raises ContentLost when they are damaged."""
        sha256 = sha256_of(ref)
        query = select(contents.c.data, contents.c.size).where(contents.c.sha256 == sha256)
        with self._database.connect() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        data = unpack_content(row.data, row.size)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ContentLost(f"the content {ref} in the database {self._database.name} is damaged; {REMEDY}")
        return data

    @property
    def connections(self) -> int | None:
        """How many connections were ever opened; while it stays the same, the database is the one it was.

        None on SQLite, where no connection ends when somebody copies another file over the one that is open.
        """
        return None if self._database.engine.dialect.name == "sqlite" else self._database.connections

    def mark(self) -> LedgerMark | None:
        """Return how far the database has come; None where a managed server does not tell it."""
        try:
            with self._database.connect() as connection:
                return read_mark(connection)
        except SinkUnavailable as error:
            if getattr(getattr(error.__cause__, "orig", None), "sqlstate", None) in NOT_TOLD:
                return None
            raise

    def ping(self, *, tables: bool = True) -> None:
        """Check that the database accepts a transaction now, and has our `tables`. Raises SinkUnavailable."""
        with self._database.begin(PING_SECONDS) as connection:  # on SQLite, BEGIN IMMEDIATE got the write lock
            if (
                connection.dialect.name != "sqlite"
                and connection.exec_driver_sql("SHOW transaction_read_only").scalar_one() == "on"
            ):
                raise SinkUnavailable(
                    f"the database {self._database.name} is read-only; point DATABASE_URL at the "
                    "primary, or see default_transaction_read_only there"
                )
            if tables:
                connection.execute(select(emails.c.email_id).limit(1)).first()
            if tables and connection.dialect.name == "sqlite":
                # BEGIN IMMEDIATE is taken for BEGIN on a file that may only be read. This is refused, no write.
                connection.execute(delete(emails).where(false()))

    def close(self) -> None:
        """Close the connections; the ledger cannot be used afterwards."""
        self._database.engine.dispose()


def _in_blob_store(stored: StoredEmail) -> set[str]:
    """Return the digests of the contents of a message that were stored outside the database."""
    inside = {content.sha256 for content in stored.contents}
    return {sha256_of(stored.raw_ref), *(part.sha256 for part in stored.email.attachments)} - inside
