"""Waits until one of several partitions has something that nobody was given yet; takes nothing itself.

A read blocks in one server, and in a Cluster on one slot. So there is a read for each server that may be asked at once,
from where the group has got to: it ends at the first entry behind that. Those still waiting when another one ends go on
beside the work; they end by themselves, and what they say is then old.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, cast

from redis.exceptions import ResponseError

from email_ingestion.stream.clients import BLOCK_SECONDS, LazyCluster
from email_ingestion.stream.connection import RedisLink, is_group_missing, text
from email_ingestion.stream.keys import GROUP, Keys

RUNG = True


class StreamWaiter:
    """Of all partitions of a link; for one thread."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        apart = isinstance(link.client, LazyCluster)
        self._places = [(keys,) for keys in link.partitions] if apart else [link.partitions]
        self._waiting: dict[int, Future[bool]] = {}
        self._threads = ThreadPoolExecutor(len(self._places), thread_name_prefix="bell") if apart else None

    def wait(self) -> None:
        """Return when there may be something, or after a second; raises like `RedisLink.call`."""
        if self._threads is None:
            self._ring(self._places[0])
            return
        for number, place in enumerate(self._places):
            if number not in self._waiting:
                self._waiting[number] = self._threads.submit(self._ring, place)
        done, _ = wait(self._waiting.values(), return_when=FIRST_COMPLETED)
        ended = [number for number, future in self._waiting.items() if future in done]
        for future in [self._waiting.pop(number) for number in ended]:
            future.result()

    def _ring(self, place: Sequence[Keys]) -> bool:
        return self._link.call(lambda: self._read(place))

    def _read(self, place: Sequence[Keys]) -> bool:
        try:
            streams = {keys.stream: self._position(keys) for keys in place}
        except ResponseError as error:
            if is_group_missing(error) or "no such key" in str(error):
                return False  # taking makes it anew
            raise
        return bool(self._link.client.xread(cast("Any", streams), count=1, block=int(BLOCK_SECONDS * 1000)))

    def _position(self, keys: Keys) -> str:
        """The id of the last entry that the group was given."""
        groups: list[dict[str, Any]] = self._link.client.xinfo_groups(keys.stream)
        return next((text(each["last-delivered-id"]) for each in groups if text(each["name"]) == GROUP), "0")
