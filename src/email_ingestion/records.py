"""The records of messages that the rooms share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

# Of an INTERNALDATE: a server may show the first day of its calendar; the last year has no room for a time zone.
ARRIVAL_YEARS = (1600, 9998)
NORMAL_PRIORITY = 5  # of 0 to 10
PARSER_VERSION = 2  # of the parser; raised when the same bytes give another record, for `email-ingestion reparse`


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a mailbox has been read: every UID up to and including `uid` is in the stream or was skipped.

    UIDs are comparable under one UIDVALIDITY only (RFC 3501, section 2.3.1.1). UIDs up to `rescan` may have been read
    under an earlier cursor that was lost: messages that the ledger knows are not fetched again.

    The mail that was there when the cursor was made is read backwards, newest first, beside the new mail. Its UIDs
    from `history` on are done, and the UIDs below are still to be read; 1 means that all are done.
    """

    uidvalidity: int
    uid: int
    rescan: int = 0
    history: int = 1


@dataclass(frozen=True, slots=True)
class Envelope:
    """The location and identity of a message, and all other facts that are known without parsing it."""

    account: str  # the configured name, never an address
    mailbox: str  # decoded name, as a person reads it
    uidvalidity: int
    uid: int
    gm_msgid: int | None  # X-GM-MSGID: unsigned 64 bit, None without X-GM-EXT-1
    gm_thrid: int | None
    labels: tuple[str, ...]
    flags: tuple[str, ...]
    internaldate: datetime  # aware, UTC
    size: int  # bytes of the raw message
    sha256: str  # hex digest of the raw message

    @property
    def email_id(self) -> str:
        """The message's identity; it survives a new UIDVALIDITY and a move between labels."""
        return email_id(self.account, self.gm_msgid, self.sha256)


def email_id(account: str, gm_msgid: int | None, sha256: str) -> str:
    """Make an identity of account and X-GM-MSGID, or of account and SHA-256 where the server has no X-GM-EXT-1."""
    return f"{account}:gm:{gm_msgid}" if gm_msgid is not None else f"{account}:sha256:{sha256}"


class ServerDefect(StrEnum):
    """A defect of what the mail server said of a message; the value is public and stands in records.

    The parser does not know them: whoever parses a message again must keep those that its record has.
    """

    FLAGS = "flags:unreadable"  # no list of flags; kept is what could be told apart
    INTERNALDATE = "internaldate:unreadable"  # the date is that of the Date field, else the time of the fetch
    SIZE = "size:unreadable"  # nothing was announced with which what came could be compared
    SIZE_MISMATCH = "size:mismatch"  # what came has another size than the server had announced


@dataclass(frozen=True, slots=True)
class RawMessage:
    """A message in the stream: its envelope, and its bytes or their reference in the blob store."""

    envelope: Envelope
    raw: bytes | None
    raw_ref: str | None = None
    only_sink: str | None = None  # the only sink that gets it: its dead letter was replayed
    priority: int = NORMAL_PRIORITY  # according to the header alone
    synthetic: str | None = None  # the id of the test of the pipeline it belongs to: it is not mail, and is not kept
    history: bool = False  # nobody waited for it: older mail, backfilled, imported or repaired
    defects: tuple[str, ...] = ()  # `ServerDefect`s, with which the record's defects begin


@dataclass(frozen=True, slots=True)
class Address:
    """One mailbox of an address header; `addr` is the addr-spec as written, empty for a group without members."""

    name: str
    addr: str


@dataclass(frozen=True, slots=True)
class Attachment:
    """One part that is not the body text, decoded."""

    position: int  # 1-based, in the order of the message
    filename: str | None
    content_type: str
    size: int  # bytes, decoded
    sha256: str  # hex digest of the decoded bytes
    content: bytes
    inline: bool = False
    content_id: str | None = None


@dataclass(frozen=True, slots=True)
class MailingList:
    """The List-… fields (RFC 2919, RFC 2369, RFC 8058); each tuple holds URIs in order of preference."""

    list_id: str | None
    post: tuple[str, ...]
    subscribe: tuple[str, ...]
    unsubscribe: tuple[str, ...]
    one_click: bool  # a POST to the https URI in `unsubscribe` unsubscribes (RFC 8058)
    archive: tuple[str, ...]
    owner: tuple[str, ...]
    help: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AuthenticationResults:
    """The results of the receiving Gmail (RFC 8601): pass, fail, none, …; None for a method that it does not name."""

    spf: str | None
    dkim: str | None
    dmarc: str | None


@dataclass(frozen=True, slots=True)
class RecipientStatus:
    """The fields of one recipient in a delivery status notification (RFC 3464, section 2.3)."""

    recipient: str
    action: str  # failed, delayed, delivered, relayed, expanded
    status: str  # such as 5.1.1
    diagnostic: str | None


@dataclass(frozen=True, slots=True)
class Bounce:
    """A delivery status notification (RFC 3464)."""

    reporting_mta: str | None
    recipients: tuple[RecipientStatus, ...]


@dataclass(frozen=True, slots=True)
class AbuseReport:
    """A complaint in the Abuse Reporting Format (RFC 5965)."""

    feedback_type: str  # abuse, fraud, virus, not-spam, other, …
    user_agent: str | None
    source_ip: str | None
    mail_from: str | None
    rcpt_to: tuple[str, ...]
    reported_domains: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Calendar:
    """A calendar part (RFC 5545, 6047)."""

    position: int  # of its attachment
    method: str | None  # REQUEST, REPLY, CANCEL, …
    text: str


@dataclass(frozen=True, slots=True)
class NestedMessage:
    """A parsed message inside the message."""

    position: int  # of its attachment
    message_id: str | None
    subject: str
    from_: Address | None
    to: tuple[Address, ...]
    cc: tuple[Address, ...]
    date: datetime | None  # aware, UTC
    text: str
    filenames: tuple[str, ...]  # of its attachments, whose contents are not kept
    enclosed: tuple[NestedMessage, ...]


@dataclass(frozen=True, slots=True)
class Email:
    """A parsed message. Texts hold neither NUL nor lone surrogates, so that every database takes them."""

    envelope: Envelope
    message_id: str | None
    subject: str
    from_: Address | None
    to: tuple[Address, ...]
    cc: tuple[Address, ...]
    bcc: tuple[Address, ...]
    reply_to: tuple[Address, ...]
    date: datetime | None  # aware, UTC; None when missing or unreadable
    in_reply_to: str | None
    references: tuple[str, ...]
    text: str  # always there: the plain part, or made from the HTML
    html: str | None
    headers: tuple[tuple[str, str], ...]  # decoded, in the order of the message
    attachments: tuple[Attachment, ...]
    defects: tuple[str, ...]  # its faults, as short stable codes such as "charset:unknown"
    sender: Address | None = None
    mailing_list: MailingList | None = None
    auto_submitted: str | None = None  # auto-generated, auto-replied, … (RFC 3834); None for a person's mail
    auto_reply: bool = False  # an automatic answer, such as out of office
    bounce: Bounce | None = None
    abuse_report: AbuseReport | None = None
    calendar: tuple[Calendar, ...] = ()
    enclosed: tuple[NestedMessage, ...] = ()
    verdicts: AuthenticationResults | None = None  # None when no Gmail received it
    priority: int = NORMAL_PRIORITY  # 0 to 10, from its header or a route
    tags: tuple[str, ...] = ()  # from routes

    @property
    def email_id(self) -> str:
        """The identity of its envelope."""
        return self.envelope.email_id


@dataclass(frozen=True, slots=True)
class SinkMessage:
    """A message for a sink. Its idempotency key is `email.email_id`."""

    email: Email
    raw: bytes  # the message as the server has it (RFC 5322)


class ChangeKind(StrEnum):
    """What happened to a message."""

    BORN = "born"  # delivered for the first time
    RELABELLED = "relabelled"
    FLAGGED = "flagged"
    TRASHED = "trashed"  # it got the flag \\Deleted or the label \\Trash
    DELETED = "deleted"  # its server does not list it any more
    RESTORED = "restored"  # its server lists it again
    REPARSED = "reparsed"
    ERASED = "erased"


@dataclass(frozen=True, slots=True)
class ChangeEvent:
    """What happened to a message that a sink got, as a sink is told; `erased_at` is for `erased` alone."""

    seq: int  # of the change feed
    at: datetime
    kind: ChangeKind
    account: str
    email_id: str
    details: Mapping[str, Any] | None
    erased_at: datetime | None = None

    @property
    def event_id(self) -> str:
        """What a receiver recognises a repetition by: it is unique over databases that number from 1 again."""
        if self.kind is ChangeKind.ERASED:
            return f"erased:{self.email_id}"
        return f"change:{self.seq}:{int(self.at.timestamp() * 1_000_000)}"

    def as_json(self) -> dict[str, Any]:
        """Convert to JSON according to `config/schemas/change.v1.json`."""
        record = {
            "seq": self.seq,
            "at": self.at.astimezone(UTC).isoformat(),
            "kind": self.kind.value,
            "account": self.account,
            "email_id": self.email_id,
            "details": self.details,
        }
        return record | ({"erased_at": self.erased_at.astimezone(UTC).isoformat()} if self.erased_at else {})
