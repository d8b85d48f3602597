"""The sink that adds each message to a Redis Stream for other programs; it is not the stream that mail arrives on.

Nothing is trimmed: when no program reads it, deliveries wait in the database, and Redis keeps its memory for new mail.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from email_ingestion.email_json import CHANGE_SCHEMA, MISSED_SCHEMA, SCHEMA, as_json, change_record, missed_record
from email_ingestion.errors import ConfigurationError, RedisConnectionError, SinkThrottled, SinkUnavailable
from email_ingestion.records import ChangeEvent, SinkMessage
from email_ingestion.stream.redis_link import RedisLink, open_link

if TYPE_CHECKING:
    from email_ingestion.settings import Settings

T = TypeVar("T")

FULL_SECONDS = 5.0
_PAGE_ENTRIES = 100  # of which each may have a megabyte


def open_sink(settings: Settings, key: str = "") -> StreamSink:
    """Open `stream` or `stream:KEY`; contacts no server. Raises ConfigurationError."""
    link = open_link(settings.redis_address, "email-ingestion-outlet")
    if any(key in {keys.stream, keys.dlq} for keys in link.partitions):
        raise ConfigurationError(f"SINKS: stream:{key} is where mail arrives: name another key")
    return StreamSink(link, key or link.keys.sink_stream, settings.stream_max_depth, settings.blob_threshold_bytes)


class StreamSink:
    """Adds entries with the fields `email_id`, `schema` and `json`; their consumer deletes them after use."""

    name = "stream"

    def __init__(self, link: RedisLink, key: str, max_depth: int, max_inline_bytes: int) -> None:
        self._link = link
        self._key = key
        self._max_depth = max_depth  # entries above which nothing is added
        self._max_inline_bytes = max_inline_bytes  # of an attachment that is part of the record

    def deliver(self, batch: Sequence[SinkMessage]) -> None:
        """Add all of the batch in one transaction; raises SinkThrottled, SinkUnavailable."""
        self._add([self._entry(message) for message in batch])

    def tell_changes(self, events: Sequence[ChangeEvent]) -> None:
        """Add all changes in one transaction; raises as `deliver` does."""
        self._add(
            [
                {
                    "email_id": event.email_id,
                    "schema": CHANGE_SCHEMA,
                    "kind": event.kind.value,
                    "seq": event.seq,
                    "json": json.dumps(change_record(event), separators=(",", ":")),
                }
                for event in events
            ]
        )

    def tell_missed(self, start_from: int) -> None:
        """Add an entry that says so; raises as `deliver` does."""
        self._add([{"schema": MISSED_SCHEMA, "json": json.dumps(missed_record(start_from))}])

    def _add(self, entries: Sequence[dict[Any, Any]]) -> None:
        def add() -> None:
            if self._link.client.xlen(self._key) >= self._max_depth:
                raise SinkThrottled(
                    f"the stream {self._key} has {self._max_depth} entries that nobody reads", FULL_SECONDS
                )
            pipe = self._link.client.pipeline(transaction=True)
            for entry in entries:
                pipe.xadd(self._key, entry)
            pipe.execute()

        try:
            self._link.call(add)
        except RedisConnectionError as error:
            raise SinkUnavailable(f"the stream {self._key} takes nothing: {error}") from error

    def ping(self) -> None:
        """Return when Redis answers; raises SinkUnavailable."""
        self._asked(lambda: self._link.client.xlen(self._key))

    def has_groups(self) -> bool:
        """Whether a consumer group reads the stream. Raises SinkUnavailable."""

        def groups() -> bool:
            there = self._link.client.exists(self._key)
            return bool(there and self._link.client.xinfo_groups(self._key))

        return self._asked(groups)

    def records(self) -> Iterator[bytes]:
        """Yield the record of every entry, empty where it has none, the oldest first. Raises SinkUnavailable."""
        after = "-"
        while page := self._page(after):
            yield from (fields.get(b"json", b"") for _, fields in page)
            after = f"({page[-1][0].decode()}"

    def _page(self, after: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
        client: Any = self._link.client
        found: list[Any] = self._asked(lambda: client.xrange(self._key, after, count=_PAGE_ENTRIES))
        return found

    def _asked(self, question: Callable[[], T]) -> T:
        try:
            return self._link.call(question)
        except RedisConnectionError as error:
            raise SinkUnavailable(f"the stream {self._key} does not answer: {error}") from error

    def close(self) -> None:
        """Close the connections."""
        self._link.client.close()

    def _entry(self, message: SinkMessage) -> dict[Any, Any]:
        record = json.dumps(as_json(message.email, self._max_inline_bytes), separators=(",", ":"))
        return {"email_id": message.email.email_id, "schema": SCHEMA, "json": record}
