"""The records that the ledger stores and returns; importing them does not load SQLAlchemy."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from email_ingestion.records import Email, Envelope, SinkMessage, email_id


@dataclass(frozen=True, slots=True)
class DeliveredName:
    """How a delivered message is called, here and elsewhere, and when and where it was."""

    email_id: str
    message_id: str | None
    internaldate: datetime
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes to keep in the database itself."""

    sha256: str  # hex digest of `data`
    data: bytes


@dataclass(frozen=True, slots=True)
class LedgerWrite(SinkMessage):
    """A message for the database sink, with the facts that no other sink gets."""

    raw_ref: str | None = None  # set when the raw bytes are already in the blob store
    owed_to: tuple[str, ...] = ()  # the further sinks that must get it
    only_sink: str | None = None  # the further sink that must get it again: its dead letter was replayed
    synthetic: bool = False  # it tests the pipeline: nothing of it is kept
    retention_days: int | None = None  # by its route: 0 never, None: its account decides


@dataclass(frozen=True, slots=True)
class StoredEmail:
    """A message to be recorded; its bytes that are not in `contents` are already in the blob store."""

    email: Email
    raw_ref: str
    contents: tuple[Content, ...] = ()
    owed_to: tuple[str, ...] = ()  # the further sinks that must get it
    only_sink: str | None = None  # the further sink that must get it again: its dead letter was replayed
    retention_days: int | None = None  # by its route: 0 never, None: its account decides


@dataclass(frozen=True, slots=True)
class Location:
    """A message's location on its server; it never names another message (RFC 3501, section 2.3.1.1).

    Unless the server was restored from a backup: see `RecordedMessage`.
    """

    mailbox: str
    uidvalidity: int
    uid: int


@dataclass(frozen=True, slots=True)
class Marks:
    """What a server says of a message now; None where it was not asked, or has none."""

    labels: tuple[str, ...] | None
    flags: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class RecordedMessage:
    """What shows whether a message of the server is the one that was recorded for its location."""

    internaldate: datetime  # aware, UTC
    size: int  # bytes
    gm_msgid: int | None
    message_id: str | None
    sha256: str


@dataclass(frozen=True, slots=True)
class StoredFacts:
    """The facts about a message that parsing its raw bytes (`raw_ref`) does not give."""

    envelope: Envelope
    raw_ref: str
    tags: tuple[str, ...]
    priority: int | None  # None: it was recorded before there were routes


@dataclass(frozen=True, slots=True)
class ErasableMessage:
    """A message with what must be known to erase it everywhere."""

    envelope: Envelope
    raw_ref: str
    locations: tuple[Location, ...] = ()  # beside that of the envelope
    sender: str | None = None  # this and the following: what the database has of its addresses
    recipients: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def email_id(self) -> str:
        """The identity of the envelope."""
        return self.envelope.email_id


@dataclass(frozen=True, slots=True)
class Hold:
    """Mail that must not be erased. `kind` says what `value` is: sender, address, id; of `account` it is empty."""

    hold_id: str
    kind: str
    value: str
    account: str | None
    reason: str
    created_by: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ErasureNotice:
    """A sink has to be told that a message which it got was erased."""

    email_id: str
    sink: str
    erased_at: datetime


@dataclass
class ErasedRows:
    """How many rows were erased."""

    messages: int = 0
    attachments: int = 0
    further: dict[str, int] = field(default_factory=dict)  # by table


def place_of(envelope: Envelope, location: Location | None = None) -> str:
    """Return the text whose tombstone stands for a place; the size and date tell a UID that was given out anew."""
    at = location or Location(envelope.mailbox, envelope.uidvalidity, envelope.uid)
    return describe_place(envelope.account, at, envelope.size, envelope.internaldate)


def describe_place(account: str, at: Location, size: int, internaldate: datetime) -> str:
    """Return the same from the facts that a server tells."""
    moment = internaldate.astimezone(UTC).isoformat(timespec="seconds")
    return f"{account}/{at.mailbox}/{at.uidvalidity}/{at.uid} {size} {moment}"


def content_identity(envelope: Envelope) -> str:
    """Return the identity by the bytes: the message has it in an mbox file, say, that does not tell X-GM-MSGID."""
    return email_id(envelope.account, None, envelope.sha256)
