"""Have Redis let go of the bytes of deleted entries: in its memory, and in the files that it keeps.

Streams are written anew, for Redis only marks an entry as deleted as long as its node holds another one; then the
append-only file and the snapshot are, which only a user with these rights can order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from email_ingestion.errors import CircuitBreakerError, RedisConnectionError
from email_ingestion.stream.redis_link import RedisLink, text

MAX_BYTES = 1024**3  # of a stream that is written anew: Redis serves nobody meanwhile, for a second or two
REWRITE_SECONDS = 300.0
POLL_SECONDS = 0.2
TEMPORARY = "restoring:rebuilt"


class QueueScrub:
    """One scrub; `outputs` are the streams of the sink `stream`. Problems are returned as sentences, none is raised."""

    def __init__(self, link: RedisLink, outputs: Sequence[str]) -> None:
        self._link = link
        self._outputs = outputs
        self._rebuild = link.script("rebuild_stream")

    def run(self) -> list[str]:
        """Write streams and files anew; return what could not be."""
        problems = [problem for key, temporary in self._streams() if (problem := self._rebuild_stream(key, temporary))]
        for node in self._link.masters():
            problems += self._rewrite_files(node)
        return problems

    def _streams(self) -> Iterator[tuple[str, str]]:
        for keys in self._link.partitions:
            yield from ((key, keys.name(TEMPORARY)) for key in (keys.stream, keys.dlq))
        yield from ((key, self._link.keys.name(TEMPORARY)) for key in self._outputs)

    def _rebuild_stream(self, key: str, temporary: str) -> str | None:
        try:
            size: Any = self._link.call(partial(self._link.client.memory_usage, key, samples=0))
            if size and size > MAX_BYTES:
                return f"Redis: the stream {key} is too large to be written anew, {size:,} bytes: shorten it first"
            self._link.call(partial(self._rebuild, keys=[key, temporary]))
        except (RedisConnectionError, CircuitBreakerError) as error:
            return f"Redis: the stream {key} could not be written anew: {error}"
        return None

    def _rewrite_files(self, node: Any) -> Iterator[str]:
        try:
            before = self._persistence(node)
            if before.get("aof_enabled"):
                self._link.call(node.bgrewriteaof)
                yield from self._await(node, "aof_rewrite", "aof_last_bgrewrite_status", "append-only file")
            if before.get("rdb_last_bgsave_time_sec", -1) != -1 or not before.get("aof_enabled"):
                self._link.call(node.bgsave)
                yield from self._await(node, "rdb_bgsave", "rdb_last_bgsave_status", "snapshot")
        except (RedisConnectionError, CircuitBreakerError) as error:
            yield (
                f"Redis: its files could not be written anew ({error}): give BGREWRITEAOF, and BGSAVE where it keeps "
                "snapshots, as a user who may, or wait until it does so itself"
            )

    def _await(self, node: Any, name: str, status: str, file: str) -> Iterator[str]:
        end = time.monotonic() + REWRITE_SECONDS
        while True:
            now = self._persistence(node)
            if not (now.get(f"{name}_in_progress") or now.get(f"{name}_scheduled")):
                break
            if time.monotonic() > end:
                yield f"Redis: its {file} was not written anew within {REWRITE_SECONDS:g} s"
                return
            time.sleep(POLL_SECONDS)
        if text(now.get(status, "ok")) != "ok":
            yield f"Redis: its {file} could not be written anew: look into its log"

    def _persistence(self, node: Any) -> dict[str, Any]:
        found: dict[str, Any] = self._link.call(partial(node.info, "persistence"))
        return found
