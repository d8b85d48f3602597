"""The records that travel between the rooms: what a message is, not what is done with it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

NORMAL_PRIORITY = 5  # of 0 to 10


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a mailbox has been read: every UID up to and including `uid` is in the stream or was skipped.

    UIDs are only comparable under one UIDVALIDITY (RFC 3501, section 2.3.1.1). Up to `rescan` the mailbox was perhaps
    read before, under a cursor that is lost: what the ledger knows there is not fetched again.

    What the mailbox held when the cursor was made is read backwards, newest first, beside the new mail: of it, UIDs
    from `history` on are accounted for, and those below are still to come; 1 means that none are.
    """

    uidvalidity: int
    uid: int
    rescan: int = 0
    history: int = 1


@dataclass(frozen=True, slots=True)
class Envelope:
    """Where a message was found and which message it is; everything known without parsing it."""

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
        """The identity that makes an effect happen once: it survives a new UIDVALIDITY and a move between labels."""
        return email_id(self.account, self.gm_msgid, self.sha256)


def email_id(account: str, gm_msgid: int | None, sha256: str) -> str:
    """Account and X-GM-MSGID, or account and SHA-256 of the raw bytes where the server has no X-GM-EXT-1."""
    return f"{account}:gm:{gm_msgid}" if gm_msgid is not None else f"{account}:sha256:{sha256}"


@dataclass(frozen=True, slots=True)
class RawMessage:
    """One message on its way: its envelope, and its bytes or the reference under which `blobs` keeps them."""

    envelope: Envelope
    raw: bytes | None
    raw_ref: str | None = None
    only_sink: str | None = None  # the only sink that is to get it again: it comes from that one's dead letter
    priority: int = NORMAL_PRIORITY  # as far as the header tells; the record may know better
    synthetic: str | None = None  # which trial of the pipeline it belongs to: nobody's mail, and it leaves nothing


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
    """What the List-… fields say (RFC 2919, 2369, 8058); the ways to do a thing are URIs, in order of preference."""

    list_id: str | None
    post: tuple[str, ...]
    subscribe: tuple[str, ...]
    unsubscribe: tuple[str, ...]
    one_click: bool  # a POST to the https one among `unsubscribe` is enough
    archive: tuple[str, ...]
    owner: tuple[str, ...]
    help: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AuthenticationResults:
    """What the Gmail that received the message found (RFC 8601): pass, fail, none, …; None where it does not say."""

    spf: str | None
    dkim: str | None
    dmarc: str | None


@dataclass(frozen=True, slots=True)
class RecipientStatus:
    """What a delivery status notification says of one recipient (RFC 3464, section 2.3)."""

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
    """A message inside the message, opened."""

    position: int  # of its attachment
    message_id: str | None
    subject: str
    from_: Address | None
    to: tuple[Address, ...]
    cc: tuple[Address, ...]
    date: datetime | None  # aware, UTC
    text: str
    filenames: tuple[str, ...]  # of its attachments, which are not taken out
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
    defects: tuple[str, ...]  # what was wrong with it, as short stable codes such as "charset:unknown"
    sender: Address | None = None
    mailing_list: MailingList | None = None
    auto_submitted: str | None = None  # auto-generated, auto-replied, … (RFC 3834); None for a person's mail
    auto_reply: bool = False  # an answer that nobody wrote: out of office and the like
    bounce: Bounce | None = None
    abuse_report: AbuseReport | None = None
    calendar: tuple[Calendar, ...] = ()
    enclosed: tuple[NestedMessage, ...] = ()
    verdicts: AuthenticationResults | None = None  # None when no Gmail received it
    priority: int = NORMAL_PRIORITY  # 0 to 10; what the message says itself, unless a route says otherwise
    tags: tuple[str, ...] = ()  # what routes gave it

    @property
    def email_id(self) -> str:
        """The identity of its envelope."""
        return self.envelope.email_id


@dataclass(frozen=True, slots=True)
class SinkMessage:
    """A message for a sink. Its idempotency key is `email.email_id`."""

    email: Email
    raw: bytes  # the message as the server has it (RFC 5322)
