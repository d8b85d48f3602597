"""Notices that mail left the queue and no worker took it, whatever became of the keys that could tell.

    bytes that are counted and not there     entries were trimmed or deleted, or the stream was and its count was not
    a stream that is behind what it was      it was deleted, renamed or evicted, swapped with another, or made anew
    a count of the workers that has grown    one of them found its group gone, which was there before

Stream and dead letters only grow in what they have ever held. Each producer remembers that by itself, so nothing that
happens in Redis can make it forget; one that starts compares its mailboxes anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from redis.exceptions import ResponseError

from email_ingestion.events import Observe, QueuedMailVanished
from email_ingestion.stream.consumer import create_group
from email_ingestion.stream.keys import entry_order
from email_ingestion.stream.redis_link import RedisLink, text
from email_ingestion.stream.stored_values import whole_number

FEW = 50  # entries of a stream that are counted again; more would hold Redis up
BYTES_GONE = "bytes that are counted are not in the stream: entries were deleted or trimmed"
MISSED_BY_OTHERS = "a worker found its consumer group gone, or another producer missed mail"


@dataclass(frozen=True, slots=True)
class StreamHeight:
    """How far a stream had come: nothing that we do makes it less."""

    last_id: tuple[int, int] = (0, 0)
    added: int = 0  # entries ever; 0 where Redis is too old to tell

    def is_above(self, now: StreamHeight) -> bool:
        """Whether a stream that has this height now is another one, or an older state of this one."""
        return self.last_id > now.last_id or self.added > now.added


class QueueWatch:
    """Of one process; for one thread. `lost_mail` raises like `RedisLink.call`."""

    def __init__(self, link: RedisLink, observe: Observe) -> None:
        self._link = link
        self._observe = observe
        self._settle_volume = link.script("settle_volume")
        self._count_loss = link.script("count_loss")
        self._heights: dict[str, StreamHeight] = {}
        self._losses: int | None = None  # that we know of

    def lost_mail(self) -> bool:
        """Return whether mail vanished since the last call; announce it, and let every other producer know."""
        if self._losses is None:
            self._make_groups()
        self._link.keep_partitions()
        vanished, heights = self._vanished_bytes(settle=False), self._read_heights()
        behind = [key for key, now in heights.items() if self._heights.get(key, StreamHeight()).is_above(now)]
        if behind:  # every producer has seen that by itself
            self._make_groups()
        losses = self._count_losses(more=bool(vanished))
        settled = self._vanished_bytes(settle=True)  # counted before, for this process may end in between
        if settled and not vanished:
            vanished, losses = settled, self._count_losses(more=True)
        by_others = self._losses is not None and losses - bool(vanished) != self._losses  # fewer: the key was lost
        self._heights, self._losses = heights, losses  # at last, for all of this is looked at again after an error
        signs = [f"{key} was deleted, replaced, or set back to an older state" for key in behind]
        for sign in signs or ([BYTES_GONE] if vanished else [MISSED_BY_OTHERS] if by_others else []):
            self._observe(QueuedMailVanished(sign, vanished))
        return bool(vanished or behind or by_others)

    def _make_groups(self) -> None:
        """Create what is missing: a worker that finds none, though a producer has worked here, counts a loss."""
        for keys in self._link.partitions:
            self._link.call(partial(create_group, self._link.client, keys.stream))

    def _vanished_bytes(self, *, settle: bool) -> int:
        """Return the bytes that are counted and not there; with `settle` count them no more."""
        found = 0
        for keys in self._link.partitions:
            call = partial(self._settle_volume, keys=[keys.stream, keys.volume], args=[int(settle), FEW])
            found += int(self._link.call(call))
        return found

    def _read_heights(self) -> dict[str, StreamHeight]:
        return {key: self._height(key) for keys in self._link.partitions for key in (keys.stream, keys.dlq)}

    def _height(self, key: str) -> StreamHeight:
        def look() -> StreamHeight:
            try:
                found: dict[str, Any] = self._link.client.xinfo_stream(key)
            except ResponseError as error:
                if "no such key" not in str(error):
                    raise
                return StreamHeight()
            return StreamHeight(entry_order(text(found["last-generated-id"])), int(found.get("entries-added", 0)))

        return self._link.call(look)

    def _count_losses(self, *, more: bool) -> int:
        """Return how often mail vanished, as all of us have counted it; with `more` once more."""
        key = self._link.keys.queue_losses
        if more:
            return int(self._link.call(lambda: self._count_loss(keys=[key])))
        return whole_number(self._link.call(lambda: self._link.client.get(key))) or 0
