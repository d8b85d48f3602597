"""The tables of the newest schema; a test compares them with the result of all migrations."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    event,
    text,
)

from email_ingestion.ledger.types import Json, Moment, Unsigned64

metadata = MetaData()

emails = Table(
    "emails",
    metadata,
    Column("email_id", Text, primary_key=True),
    Column("account", Text, nullable=False),
    Column("mailbox", Text, nullable=False),
    Column("uidvalidity", BigInteger, nullable=False),
    Column("uid", BigInteger, nullable=False),
    Column("gm_msgid", Unsigned64),
    Column("gm_thrid", Unsigned64),
    Column("labels", Json, nullable=False),
    Column("message_id", Text),
    Column("subject", Text, nullable=False),
    Column("from_addr", Text),
    Column("from_name", Text),
    Column("to_addrs", Json, nullable=False),  # [{"name": …, "addr": …}, …]
    Column("date", Moment),
    Column("internaldate", Moment, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("html", Text),
    Column("headers", Json, nullable=False),  # [[name, value], …]
    Column("defects", Json, nullable=False),
    Column("raw_ref", Text, nullable=False),
    Column("processed_at", Moment, nullable=False),
    Column("flags", Json),  # this and the following: NULL for what was delivered before they were kept
    Column("tags", Json),
    Column("priority", Integer),
    Column("cc_addrs", Json),
    Column("list_id", Text),  # of a mailing list: its List-Id, empty where it has none; NULL for other mail too
    Column("auto_reply", Boolean),
    Column("bounce", Boolean),  # a delivery status notification
    Column("spf", Text),  # this and the following: what the receiving Gmail found
    Column("dkim", Text),
    Column("dmarc", Text),
    # The parser that made the record; 0 for one from before there were versions.
    Column("parser_version", Integer, nullable=False, server_default=text("0")),
    # After how many days a route lets it be erased: 0 never, NULL where none says so and its account decides.
    Column("retention_days", Integer),
    Column("deleted_at", Moment),  # when an audit found that the server does not list it any more
)

# A B-tree of PostgreSQL refuses a key above 2,704 bytes, and anybody may send such a Message-ID: hence hash.
_message_ids = Index("emails_message_id", emails.c.message_id)
Index("emails_gm_msgid", emails.c.account, emails.c.gm_msgid)
Index("emails_uid", emails.c.account, emails.c.mailbox, emails.c.uidvalidity, emails.c.uid)
Index("emails_internaldate", emails.c.internaldate)
_HAS_THREAD = text("gm_thrid IS NOT NULL")
_threads = Index("emails_gm_thrid", emails.c.gm_thrid, sqlite_where=_HAS_THREAD)
Index("emails_parser_version", emails.c.parser_version)
_HAS_RETENTION = text("retention_days IS NOT NULL")
_retention = Index("emails_retention", emails.c.retention_days, emails.c.internaldate, sqlite_where=_HAS_RETENTION)
_IS_DELETED = text("deleted_at IS NOT NULL")
_deleted = Index(
    "emails_deleted",
    emails.c.account,
    emails.c.mailbox,
    emails.c.uidvalidity,
    emails.c.uid,
    sqlite_where=_IS_DELETED,
)

attachments = Table(
    "attachments",
    metadata,
    Column("email_id", Text, ForeignKey("emails.email_id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("filename", Text),
    Column("content_type", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("content_ref", Text, nullable=False),
)

contents = Table(
    "contents",
    metadata,
    Column("sha256", Text, primary_key=True),
    Column("size", BigInteger, nullable=False),  # bytes before compression
    Column("data", LargeBinary, nullable=False),
)

# Further locations of a delivered message; its row in `emails` keeps the location it was first delivered from.
places = Table(
    "places",
    metadata,
    Column("account", Text, primary_key=True),
    Column("mailbox", Text, primary_key=True),
    Column("uidvalidity", BigInteger, primary_key=True, autoincrement=False),
    Column("uid", BigInteger, primary_key=True, autoincrement=False),
    Column("email_id", Text, ForeignKey("emails.email_id", ondelete="CASCADE"), nullable=False),
)
Index("places_email_id", places.c.email_id)

# Messages an operator purged from the dead letters: given up on purpose, so `reconcile` does not report them missing.
purged = Table(
    "purged",
    metadata,
    Column("email_id", Text, primary_key=True),
    Column("purged_at", Moment, nullable=False),
)

# What was erased and must not come back: hashes of identities and places (`identity.tombstone`) that do not tell them.
erased = Table(
    "erased",
    metadata,
    Column("tombstone", Text, primary_key=True),
    Column("erased_at", Moment, nullable=False),
)

# Contents of erased messages that are still to be removed unless another message refers to them.
erased_contents = Table(
    "erased_contents",
    metadata,
    Column("sha256", Text, primary_key=True),
    Column("erased_at", Moment, nullable=False),
)

# Receivers that still have to be told of an erasure; a row goes when they were.
erasure_notices = Table(
    "erasure_notices",
    metadata,
    Column("email_id", Text, primary_key=True),
    Column("sink", Text, primary_key=True),
    Column("erased_at", Moment, nullable=False),
)

# What must not be erased: mail that fulfils the condition, as long as the hold is not released.
holds = Table(
    "holds",
    metadata,
    Column("hold_id", Text, primary_key=True),
    Column("kind", Text, nullable=False),  # sender, address, id, account
    Column("value", Text, nullable=False),  # empty after the release: it may be an address
    Column("account", Text),  # only mail of this one
    Column("reason", Text, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("released_by", Text),
    Column("released_at", Moment),
)

# Who may ask the read API. Of a token only its hash is kept; a row stays when the token has ended or was revoked.
api_tokens = Table(
    "api_tokens",
    metadata,
    Column("token_id", Text, primary_key=True),
    Column("sha256", Text, nullable=False, unique=True),
    Column("scope", Text, nullable=False),  # read, operate
    Column("account", Text),  # only this one's mail
    Column("created_by", Text, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("expires_at", Moment),
    Column("revoked_by", Text),
    Column("revoked_at", Moment),
)

# Accounts beside those of config/settings.toml. All is text, so that one row that somebody spoilt hides no other.
accounts = Table(
    "accounts",
    metadata,
    Column("name", Text, primary_key=True),
    Column("state", Text, nullable=False),  # active, paused; removed keeps a restore from bringing it back
    Column("settings", Text, nullable=False),  # JSON, as a table of [[accounts]], without its secrets
    Column("secrets", Text),  # this and the next: JSON, encrypted with TOKEN_ENCRYPTION_KEY
    Column("consent", Text),  # as it was given; newer access tokens are in the token file of each machine
    Column("changed_at", Moment, nullable=False),
    Column("changed_by", Text, nullable=False),
)

# The deliveries to each further sink: a row is written in the transaction of its message, and its final state keeps
# the sink from getting the message again.
deliveries = Table(
    "deliveries",
    metadata,
    Column("email_id", Text, ForeignKey("emails.email_id", ondelete="CASCADE"), primary_key=True),
    Column("sink", Text, primary_key=True),
    Column("state", Text, nullable=False),  # waiting, delivered, dead
    Column("due", Moment),  # when it may be tried, or when the holder's lease ends; NULL in a final state
    Column("attempts", Integer, nullable=False),  # started, the present one included
    Column("holder", Text),  # the instance that tries it now, or died while trying
    Column("changed_at", Moment, nullable=False),
)
_WAITING = text("state = 'waiting'")
_due = Index("deliveries_due", deliveries.c.sink, deliveries.c.due, sqlite_where=_WAITING)


# The change feed: what happened to each delivered message. `seq` follows the order of the commits:
# ledger/change_feed.py.
SEQUENCE = BigInteger().with_variant(Integer(), "sqlite")  # there it is the row's own number
changes = Table(
    "changes",
    metadata,
    Column("seq", SEQUENCE, primary_key=True, autoincrement=False),
    Column("at", Moment, nullable=False),
    Column("kind", Text, nullable=False),
    Column("account", Text, nullable=False),
    Column("email_id", Text, nullable=False),  # stays when the message is erased
    Column("details", Json),
)
_HAS_DETAILS = text("details IS NOT NULL")
_details = Index("changes_details", changes.c.email_id, sqlite_where=_HAS_DETAILS)

# Changes on PostgreSQL that have no number yet.
change_arrivals = Table(
    "change_arrivals",
    metadata,
    Column("arrival", SEQUENCE, primary_key=True),
    *(Column(each.name, each.type, nullable=each.nullable) for each in changes.columns if each.name != "seq"),
)

# One row: the last number that was given, and the last of those that are not kept any more.
change_feed = Table(
    "change_feed",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("removed_to", BigInteger, nullable=False),
)

# How far each sink was told of the feed, and which process tells it now.
change_readers = Table(
    "change_readers",
    metadata,
    Column("sink", Text, primary_key=True),
    Column("last_seq", BigInteger, nullable=False),
    Column("holder", Text),
    Column("until", Moment),  # the end of the holder's lease
)

# Changes up to there that a sink has not taken: they wait for another attempt, or it refused them for good.
held_changes = Table(
    "held_changes",
    metadata,
    Column("sink", Text, primary_key=True),
    Column("seq", SEQUENCE, primary_key=True, autoincrement=False),  # of a row in `changes`, which has the rest
    Column("email_id", Text, nullable=False),
    Column("state", Text, nullable=False),  # waiting, refused
    Column("due", Moment),  # NULL for a refused one
    Column("attempts", Integer, nullable=False),
    Column("reason", Text),
)
Index("held_changes_email_id", held_changes.c.sink, held_changes.c.email_id)
Index("held_changes_due", held_changes.c.sink, held_changes.c.state, held_changes.c.due)


@event.listens_for(metadata, "before_create")
def _for_postgresql(_metadata: MetaData, connection: Connection, **_: object) -> None:
    """Set PostgreSQL's options late: with the tables above they would load its dialect (2 MB) for SQLite too."""
    if connection.dialect.name == "postgresql":
        _message_ids.dialect_kwargs["postgresql_using"] = "hash"
        _due.dialect_kwargs["postgresql_where"] = _WAITING
        _threads.dialect_kwargs["postgresql_where"] = _HAS_THREAD
        _retention.dialect_kwargs["postgresql_where"] = _HAS_RETENTION
        _details.dialect_kwargs["postgresql_where"] = _HAS_DETAILS
        _deleted.dialect_kwargs["postgresql_where"] = _IS_DELETED
