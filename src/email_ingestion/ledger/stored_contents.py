"""Which stored bytes the messages of the ledger refer to, page by page, for those who look whether all are there."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import zstandard
from sqlalchemy import literal, select, update

from email_ingestion.blobs import reference, sha256_of
from email_ingestion.ledger.engine import Database
from email_ingestion.ledger.model import Location
from email_ingestion.ledger.tables import attachments, contents, emails, places

PAGE = 200  # messages


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A delivered message: what its bytes are stored under, and where its server has or had it."""

    email_id: str
    account: str
    gm_msgid: int | None
    message_id: str | None
    raw_ref: str
    attachment_refs: tuple[str, ...]
    locations: tuple[Location, ...]


class StoredContents:
    """The references of the delivered messages. Methods raise SinkUnavailable when the database is down."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def messages(self, after: str = "") -> Iterator[StoredMessage]:
        """Yield the messages in the order of their identities, those after the identity `after`."""
        columns = (emails.c.email_id, emails.c.account, emails.c.mailbox, emails.c.uidvalidity, emails.c.uid)
        query = select(*columns, emails.c.gm_msgid, emails.c.message_id, emails.c.raw_ref)
        while True:
            with self._database.connect() as connection:
                page = query.where(emails.c.email_id > after).order_by(emails.c.email_id).limit(PAGE)
                rows = connection.execute(page).all()
            parts = self._attachment_refs([row.email_id for row in rows])
            further = self._places([row.email_id for row in rows])
            for row in rows:
                first = Location(row.mailbox, row.uidvalidity, row.uid)
                yield StoredMessage(
                    row.email_id,
                    row.account,
                    row.gm_msgid,
                    row.message_id,
                    row.raw_ref,
                    tuple(parts.get(row.email_id, ())),
                    (first, *further.get(row.email_id, ())),
                )
            if len(rows) < PAGE:
                return
            after = rows[-1].email_id

    def inside(self, refs: Collection[str]) -> set[str]:
        """Return the references of `refs` whose bytes are in the database itself."""
        by_digest = {sha256_of(ref): ref for ref in refs}
        with self._database.connect() as connection:
            query = select(contents.c.sha256).where(contents.c.sha256.in_(list(by_digest)))
            return {by_digest[found] for found in connection.execute(query).scalars()}

    def any_outside(self) -> bool:
        """Tell whether the bytes of any message are not in the database itself."""
        inside = select(contents.c.sha256).where(literal(reference("")) + contents.c.sha256 == emails.c.raw_ref)
        with self._database.connect() as connection:
            return connection.execute(select(emails.c.email_id).where(~inside.exists()).limit(1)).first() is not None

    def replace(self, ref: str, data: bytes) -> None:
        """Write the bytes of a reference in the database again: those there are damaged."""
        packed = zstandard.ZstdCompressor().compress(data)
        change = update(contents).where(contents.c.sha256 == sha256_of(ref)).values(size=len(data), data=packed)
        with self._database.begin() as connection:
            connection.execute(change)

    def _attachment_refs(self, email_ids: list[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        query = select(attachments.c.email_id, attachments.c.content_ref).where(attachments.c.email_id.in_(email_ids))
        with self._database.connect() as connection:
            for row in connection.execute(query.order_by(attachments.c.email_id, attachments.c.position)):
                found.setdefault(row.email_id, []).append(row.content_ref)
        return found

    def _places(self, email_ids: list[str]) -> dict[str, list[Location]]:
        found: dict[str, list[Location]] = {}
        columns = (places.c.email_id, places.c.mailbox, places.c.uidvalidity, places.c.uid)
        with self._database.connect() as connection:
            for row in connection.execute(select(*columns).where(places.c.email_id.in_(email_ids))):
                found.setdefault(row.email_id, []).append(Location(row.mailbox, row.uidvalidity, row.uid))
        return found
