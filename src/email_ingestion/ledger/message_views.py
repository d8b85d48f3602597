"""One delivered message as a page shows it: what the parser made of it, its attachments, and where it went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, select

from email_ingestion.ledger.engine import Database
from email_ingestion.ledger.model import Location
from email_ingestion.ledger.tables import attachments, deliveries, emails, places
from email_ingestion.records import Address


@dataclass(frozen=True, slots=True)
class StoredAttachment:
    """An attachment, and where its bytes are."""

    position: int  # 1-based
    filename: str | None
    content_type: str  # as its sender says
    size: int  # bytes
    content_ref: str  # for `content_of`


@dataclass(frozen=True, slots=True)
class DeliveryState:
    """What became of a message at one sink beside the database."""

    sink: str
    state: str  # waiting, delivered, dead
    attempts: int
    holder: str | None  # the instance that tries it now
    changed_at: datetime
    due: datetime | None  # of a waiting one; None: it is sent again when nothing else waits


@dataclass(frozen=True, slots=True)
class MessageView:
    """A delivered message."""

    email_id: str
    account: str
    location: Location  # where it was first delivered from
    further_locations: tuple[Location, ...]
    labels: tuple[str, ...]
    flags: tuple[str, ...]
    tags: tuple[str, ...]
    priority: int | None  # None: it was recorded before there were routes
    message_id: str | None
    subject: str
    sender: Address
    to: tuple[Address, ...]
    cc: tuple[Address, ...]
    date: datetime | None  # that its sender states
    internaldate: datetime
    processed_at: datetime
    size: int  # bytes
    text: str
    html: str | None
    headers: tuple[tuple[str, str], ...]
    defects: tuple[str, ...]
    raw_ref: str
    list_id: str | None
    is_bounce: bool
    is_auto_reply: bool
    verdicts: tuple[tuple[str, str], ...]  # such as ("spf", "pass")
    attachments: tuple[StoredAttachment, ...]
    deliveries: tuple[DeliveryState, ...]


class MessageViews:
    """Reads them. Threads may share it; every method raises SinkUnavailable when the database is down."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def message(self, email_id: str) -> MessageView | None:
        """Return a message; None when it was not delivered."""
        by_place = (places.c.mailbox, places.c.uidvalidity, places.c.uid)
        by_position = select(attachments).where(attachments.c.email_id == email_id).order_by(attachments.c.position)
        by_sink = select(deliveries).where(deliveries.c.email_id == email_id).order_by(deliveries.c.sink)
        with self._database.connect() as connection:
            row = connection.execute(select(emails).where(emails.c.email_id == email_id)).one_or_none()
            if row is None:
                return None
            further = connection.execute(select(*by_place).where(places.c.email_id == email_id).order_by(*by_place))
            elsewhere = tuple(Location(*each) for each in further)
            files = tuple(_attachment(each) for each in connection.execute(by_position))
            states = tuple(
                DeliveryState(each.sink, each.state, each.attempts, each.holder, each.changed_at, each.due)
                for each in connection.execute(by_sink)
            )
        return _view(row, elsewhere, files, states)

    def attachment(self, email_id: str, position: int) -> StoredAttachment | None:
        """Return one attachment of a message; None where there is none of that number."""
        query = select(attachments).where(attachments.c.email_id == email_id, attachments.c.position == position)
        with self._database.connect() as connection:
            row = connection.execute(query).one_or_none()
        return _attachment(row) if row else None

    def html(self, email_id: str) -> str | None:
        """Return the HTML of a message; None when it has none, or was not delivered."""
        with self._database.connect() as connection:
            query = select(emails.c.html).where(emails.c.email_id == email_id)
            return connection.execute(query).scalar_one_or_none()


def _attachment(row: Row[Any]) -> StoredAttachment:
    return StoredAttachment(row.position, row.filename, row.content_type, row.size, row.content_ref)


def _view(
    row: Row[Any],
    further: tuple[Location, ...],
    files: tuple[StoredAttachment, ...],
    states: tuple[DeliveryState, ...],
) -> MessageView:
    return MessageView(
        email_id=row.email_id,
        account=row.account,
        location=Location(row.mailbox, row.uidvalidity, row.uid),
        further_locations=further,
        labels=tuple(row.labels),
        flags=tuple(row.flags or ()),
        tags=tuple(row.tags or ()),
        priority=row.priority,
        message_id=row.message_id,
        subject=row.subject,
        sender=Address(row.from_name or "", row.from_addr or ""),
        to=_addresses(row.to_addrs),
        cc=_addresses(row.cc_addrs),
        date=row.date,
        internaldate=row.internaldate,
        processed_at=row.processed_at,
        size=row.size,
        text=row.text,
        html=row.html,
        headers=tuple((name, value) for name, value in row.headers),
        defects=tuple(row.defects),
        raw_ref=row.raw_ref,
        list_id=row.list_id,
        is_bounce=bool(row.bounce),
        is_auto_reply=bool(row.auto_reply),
        verdicts=tuple((name, getattr(row, name)) for name in ("spf", "dkim", "dmarc") if getattr(row, name)),
        attachments=files,
        deliveries=states,
    )


def _addresses(found: Sequence[dict[str, str]] | None) -> tuple[Address, ...]:
    return tuple(Address(each.get("name") or "", each.get("addr") or "") for each in found or ())
