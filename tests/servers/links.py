"""Short ways to the objects that speak to Redis, for tests."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

from email_ingestion.breaker import Breaker, BreakerPolicy
from email_ingestion.errors import PermanentError, RedisConnectionError, TransientError
from email_ingestion.events import Event
from email_ingestion.records import Cursor, Envelope, RawMessage
from email_ingestion.settings import RedisAddress
from email_ingestion.stream import Appender, Consumer, Keys, RedisLink, connect
from email_ingestion.stream.dead_letters import dead_letter_fields


def link(url: str | RedisAddress, observe=lambda event: None, **policy) -> RedisLink:
    chosen = BreakerPolicy(**{"fail_max": 1000, **policy})
    partitions = 1 if isinstance(url, str) else url.partitions
    return RedisLink(
        connect(url, "test"), Keys(), Breaker("redis", chosen, (RedisConnectionError,), observe), partitions
    )


def message(
    uid: int, *, account: str = "default", raw: bytes | None = None, uidvalidity: int = 1, **fields
) -> RawMessage:
    raw = b"Subject: letter %d\r\n\r\nhello %d" % (uid, uid) if raw is None else raw
    values = {
        "account": account,
        "mailbox": "INBOX",
        "uidvalidity": uidvalidity,
        "uid": uid,
        "gm_msgid": 1000 + uid,
        "gm_thrid": 1000 + uid,
        "labels": ("\\Inbox", "Übung"),
        "flags": ("\\Seen",),
        "internaldate": datetime(2026, 1, 1, tzinfo=UTC),
        "size": len(raw),
        "sha256": hashlib.sha256(raw).hexdigest(),
    }
    return RawMessage(Envelope(**(values | fields)), raw)


def fill_dead_letters(url: str, permanent: str) -> None:
    """Leave three dead letters of one kind, with the words of a PermanentError, and two of another."""
    consumer = Consumer(link(url), "here-worker-1", 60.0)
    consumer.ensure_group()
    appender = Appender(link(url))
    cursor = appender.restart_cursor("default", "INBOX", Cursor(1, 0))
    appender.append("default", "INBOX", cursor, 5, [message(uid) for uid in range(1, 6)])
    for number, each in enumerate(consumer.read_new(100, block=False)):
        error = PermanentError(permanent) if number < 3 else TransientError("the sink is away")
        fields = dead_letter_fields("permanent" if number < 3 else "max_retries", 1, error, "", "here-worker-1")
        assert consumer.dead_letter(each, fields)


def history_uids(url: str) -> set[int]:
    """The UIDs of the entries that are marked as history."""
    entries = link(url).client.xrange(Keys().stream)
    return {int(fields[b"uid"]) for _, fields in entries if fields.get(b"history") == b"1"}


class Heard:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[Event]) -> list:
        return [event for event in self.events if isinstance(event, kind)]
