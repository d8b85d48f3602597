"""Restores a snapshot: loaded next to the keyspace, verified, then put in its place in one step.

Readers see the former keys meanwhile, and a restore that breaks off has changed nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from functools import partial
from itertools import groupby
from typing import Any

from email_ingestion.errors import OperationFailed
from email_ingestion.stream.keys import Keys
from email_ingestion.stream.redis_link import RedisLink
from email_ingestion.stream.snapshot import Line, Tally, key_names, read_snapshot, unpack

PREFIX = "restoring:"
NO_EXPIRY = -1  # PTTL of a key that does not expire
CHUNK_BYTES = 4 * 1024 * 1024
CHUNK_LINES = 1000
COMMANDS = {"string": "SET", "hash": "HSET", "list": "RPUSH", "set": "SADD", "zset": "ZADD"}
TEMPORARY_GROUP = "nobody"  # only creates an empty stream


class SnapshotRestore:
    """One restore into the Redis behind a link. Every method raises like `RedisLink.call`."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link

    def existing_keys(self) -> list[str]:
        """Return the keys that a restore would replace, without those that expire (a lease, an override)."""
        found = [keys.name(name) for keys in self._link.partitions for name in key_names(self._link, keys)]
        found = [key for key in found if key != self._link.keys.partitions]

        def read() -> list[int]:
            pipe = self._link.client.pipeline(transaction=False)
            for key in found:
                pipe.pttl(key)
            return pipe.execute()

        return [key for key, left in zip(found, self._link.call(read), strict=True) if left == NO_EXPIRY]

    def load(self, lines: Iterable[Line]) -> None:
        """Write a snapshot next to the keyspace."""
        self.abandon()
        for partition, part in groupby(lines, key=lambda line: int(line.get("partition", 0))):
            keys = self._link.partitions[partition]
            pipe = self._link.call(lambda keys=keys: self._link.node_for(keys).pipeline(transaction=False))  # type: ignore[misc]
            size = count = 0
            for line in part:
                size += _put(pipe, _loading_key(keys, line["key"]), line)
                count += 1
                if size > CHUNK_BYTES or count >= CHUNK_LINES:
                    self._link.call(pipe.execute)
                    size = count = 0
            self._link.call(pipe.execute)

    def verify(self, expected: dict[str, Any]) -> None:
        """Read back the loaded keys; raises OperationFailed unless they are as the manifest says."""
        tally = Tally()
        for line in read_snapshot(self._link, PREFIX):
            tally.count(line)
        found = tally.summary()
        wrong = [f"{name} {found[name]} instead of {expected[name]}" for name in found if found[name] != expected[name]]
        if wrong:
            raise OperationFailed(f"what was loaded into Redis is not what the manifest says: {'; '.join(wrong)}")

    def switch(self) -> int:
        """Put the loaded keys in the place of the present ones, partition by partition; return their number.

        Broken off in between, it leaves the following partitions as they were: restore again.
        """
        return sum(self._switch(keys) for keys in self._link.partitions)

    def _switch(self, keys: Keys) -> int:
        old = [keys.name(name) for name in key_names(self._link, keys)]
        pairs = [
            key for name in key_names(self._link, keys, PREFIX) for key in (_loading_key(keys, name), keys.name(name))
        ]
        script = self._link.script("switch_keys")
        return int(self._link.call(lambda: script(keys=[*old, *pairs], args=[len(old)]))) if old or pairs else 0

    def abandon(self) -> None:
        """Delete keys that were loaded and not put in their place."""
        for keys in self._link.partitions:
            left = [_loading_key(keys, name) for name in key_names(self._link, keys, PREFIX)]
            if left:
                self._link.call(partial(self._link.client.unlink, *left))


def _loading_key(keys: Keys, name: str) -> str:
    return keys.name(PREFIX + name)


def _put(pipe: Any, key: str, line: Line) -> int:
    """Queue the commands of one line; return its bytes."""
    if "id" in line:
        fields = [unpack(part) for part in line["fields"]]
        pipe.execute_command("XADD", key, line["id"], *fields)
        return sum(map(len, fields))
    if "pending" in line:
        _claim(pipe, key, line)
    elif "groups" in line:
        _finish_stream(pipe, key, line)
    elif line["type"] == "stream":
        pipe.xgroup_create(key, TEMPORARY_GROUP, id="0", mkstream=True)
        pipe.xgroup_destroy(key, TEMPORARY_GROUP)
    elif line.get("expires_at", math.inf) > time.time() * 1000:
        _plain(pipe, key, line)
    return 0


def _finish_stream(pipe: Any, key: str, line: Line) -> None:
    """Set ids and groups, after the entries: an entry with an id below the last one cannot be added any more."""
    if line["last_id"] != "0-0":
        pipe.execute_command(
            "XSETID", key, line["last_id"], "ENTRIESADDED", line["added"], "MAXDELETEDID", line["deleted"]
        )
    for name, last, read in line["groups"]:
        pipe.xgroup_create(key, unpack(name), id=last, entries_read=read)


def _claim(pipe: Any, key: str, line: Line) -> None:
    group = unpack(line["group"])
    for entry_id, consumer, delivered_at, deliveries in line["pending"]:
        pipe.execute_command(
            *("XCLAIM", key, group, unpack(consumer), 0, entry_id),
            *("TIME", delivered_at, "RETRYCOUNT", deliveries, "FORCE", "JUSTID"),
            parse_justid=True,
        )


def _plain(pipe: Any, key: str, line: Line) -> None:
    values = [unpack(part) for part in line["value"]]
    if line["type"] == "zset":  # read as member, score; written as score, member
        values = [part for pair in zip(values[1::2], values[::2], strict=True) for part in pair]
    pipe.execute_command(COMMANDS[line["type"]], key, *values)
    if "expires_at" in line:
        pipe.pexpireat(key, line["expires_at"])
