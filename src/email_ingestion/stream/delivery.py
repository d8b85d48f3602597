"""An entry that was delivered to a worker: decoded, with its earlier attempts."""

from __future__ import annotations

import time
from dataclasses import dataclass

from email_ingestion.errors import PermanentError
from email_ingestion.records import RawMessage
from email_ingestion.stream.codec import decode
from email_ingestion.stream.keys import Keys, entry_time


@dataclass(frozen=True, slots=True)
class Delivery:
    """An entry delivered to this worker; it stays pending until it is acked or dead-lettered."""

    id: str  # as `Keys.format_entry_id` makes it
    attempt: int  # this delivery included, and those of an earlier life of the worker
    message: RawMessage | None  # None when the entry cannot be read: `unreadable` says why
    unreadable: PermanentError | None
    wire_bytes: int  # bytes of the entry's fields, as the scripts count the stream's volume
    foreign: bool  # claimed from another consumer
    queue_wait: float  # seconds from append to this delivery, by Redis' clock and ours

    @property
    def email_id(self) -> str:
        """The message's identity, or the entry's id when it cannot be read."""
        return self.message.envelope.email_id if self.message else f"entry:{self.id}"

    @property
    def synthetic(self) -> str | None:
        """The run of a synthetic message (`RawMessage.synthetic`), None for mail."""
        return self.message.synthetic if self.message else None

    def age(self) -> float:
        """Return the seconds since it was appended, by Redis' clock and ours."""
        return max(0.0, time.time() - entry_time(self.id))


def decode_delivery(keys: Keys, entry_id: bytes, attempt: int, flat: list[bytes], *, foreign: bool) -> Delivery:
    """Decode an entry; one that cannot be decoded is still a delivery, so that it can be dead-lettered."""
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    message, unreadable = None, None
    try:
        message = decode(fields)
    except PermanentError as error:
        unreadable = error
    name = entry_id.decode()
    return Delivery(
        id=keys.format_entry_id(name),
        attempt=attempt,
        message=message,
        unreadable=unreadable,
        wire_bytes=sum(map(len, flat)),
        foreign=foreign,
        queue_wait=max(0.0, time.time() - entry_time(name)),
    )
