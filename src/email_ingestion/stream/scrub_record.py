"""When all stored bytes were read last, and how far a scrub has come: kept in Redis for whichever process is next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from email_ingestion.stream.redis_link import RedisLink, text
from email_ingestion.stream.stored_values import whole_number

FIELDS = ("position", "lost", "ended")


@dataclass(frozen=True, slots=True)
class ScrubProgress:
    """How far a scrub came that did not end, and the seconds since the last one that did; None before there is one."""

    position: str
    lost: int  # contents that it found lost so far
    seconds_since_end: float | None


class ScrubRecord:
    """The record in Redis. Every method raises like `RedisLink.call`."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._key = link.keys.scrub

    def read(self) -> ScrubProgress:
        """Return the record; the time is by Redis' clock."""

        def read() -> Any:
            pipe = self._link.node_for(self._link.keys).pipeline(transaction=False)
            pipe.time()
            pipe.hmget(self._key, FIELDS)
            return pipe.execute()

        (seconds, _), fields = self._link.call(read)
        position, lost, ended = (text(value) if value else "" for value in fields)
        since = max(0.0, seconds - at) if (at := whole_number(ended)) is not None else None
        return ScrubProgress(position, max(0, whole_number(lost) or 0), since)

    def write_position(self, position: str, lost: int) -> None:
        """Write how far a scrub has come."""
        self._link.call(lambda: self._link.client.hset(self._key, mapping={"position": position, "lost": lost}))

    def write_end(self) -> None:
        """Write that a scrub ended now; the next one begins at the beginning."""

        def write() -> Any:
            node = self._link.node_for(self._link.keys)
            seconds, _ = node.time()
            return self._link.client.hset(self._key, mapping={"position": "", "lost": 0, "ended": int(seconds)})

        self._link.call(write)
