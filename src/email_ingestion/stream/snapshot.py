"""The whole keyspace as lines of text that outlive Redis, read while all processes work.

    {"key": "cursor:default/INBOX", "type": "hash", "value": ["uid", "17", "uidvalidity", "1"]}
    {"key": "stream", "type": "stream"}
    {"key": "stream", "id": "1767225600000-0", "fields": ["v", "1", …, "raw", {"b64": "KLUv/…"}]}
    {"key": "stream", "last_id": …, "added": …, "deleted": …, "groups": [[name, last id, entries read], …]}
    {"key": "stream", "group": "email_processor_group", "pending": [[id, consumer, delivered at (ms), deliveries], …]}

Lines of another partition than 0 name it: "partition": 3.

Logical on purpose: Redis refuses an RDB or a DUMP that a newer Redis or a Valkey wrote, a managed Redis refuses
replication, and keys restored by commands are in its append-only file. Cursors and pending lists are of one instant,
entries are read after it: an entry acked meanwhile is in the database, a dead-lettered one is read as a dead letter.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from email_ingestion.errors import OperationFailed, TransientError
from email_ingestion.stream.entry_scan import read_entries
from email_ingestion.stream.foreign_keys import MOVED
from email_ingestion.stream.keys import Keys, entry_order
from email_ingestion.stream.redis_link import RedisLink, text

Line = dict[str, Any]

PENDING_LINE = 1000
STREAM = "stream"
VOLUME = "volume"
REPLAYED = "replayed"
LOST = "Redis lost its data while it was read: find out why (redis-cli INFO server), restore the last backup"
GROUPS = 3  # index of the groups in the script's value of a stream


class SnapshotTorn(TransientError):
    """Dead letters were replayed while both streams were read: read again."""


def key_names(link: RedisLink, keys: Keys, prefix: str = "") -> list[str]:
    """Return the keys below `prefix`, sorted and without it; presences and keys a restore is loading are left out."""
    start = keys.name(prefix)
    found = link.call(lambda: [text(key) for key in link.node_for(keys).scan_iter(match=f"{start}*", count=1000)])
    left_out = () if prefix else (keys.name("restoring:"), keys.alive(""), keys.processes)
    return sorted({name.removeprefix(start) for name in found if not left_out or not name.startswith(left_out)})


def keys_aside(link: RedisLink) -> list[str]:
    """Return the keys that hold what was moved out of the way of ours. Raises like `RedisLink.call`."""
    return [keys.name(MOVED + name) for keys in link.partitions for name in key_names(link, keys, MOVED)]


def read_snapshot(link: RedisLink, prefix: str = "") -> Iterator[Line]:
    """Yield the keys below `prefix` line by line, partition by partition; each partition is of one instant.

    Raises like `RedisLink.call`, SnapshotTorn and OperationFailed.
    """
    for keys in link.partitions:
        where = {"partition": keys.partition} if keys.partition else {}
        for line in _Partition(link, keys, prefix).lines():
            yield line | where


class _Partition:
    """The keys of one partition below a prefix."""

    def __init__(self, link: RedisLink, keys: Keys, prefix: str) -> None:
        self._link = link
        self._keys = keys
        self._prefix = prefix
        self._script = link.script("snapshot")

    def lines(self) -> Iterator[Line]:
        """Yield the lines of the partition."""
        found = key_names(self._link, self._keys, self._prefix)
        now, states = self._states(found)
        written: set[str] = set()
        ends: dict[str, str] = {}
        replayed = None
        for name, (kind, ttl, value) in zip(found, states, strict=True):
            if name == REPLAYED:
                replayed = value
            if kind == b"stream" and not value[GROUPS]:
                continue
            written.add(name)
            if kind == b"stream":
                ends[name] = text(value[0])
                yield from self._queue(name, now, value)
            elif kind != b"none" and name != VOLUME:  # else it expired meanwhile, or is written with its stream
                yield _plain(name, kind, value, now + ttl if ttl > 0 else None)
        # Streams without groups come last: entries moved there from the others, perhaps as the first, are among them.
        remaining = [name for name in key_names(self._link, self._keys, self._prefix) if name not in written]
        for name, (kind, _, _) in zip(remaining, self._states(remaining)[1], strict=True):
            if kind == b"stream":
                for line in self._end(name):
                    ends[name] = line.get("last_id", ends.get(name, ""))
                    yield line
        self._refuse_torn(ends, replayed)

    def _key(self, name: str) -> str:
        return self._keys.name(self._prefix + name)

    def _states(self, found: Sequence[str]) -> tuple[int, list[Any]]:
        if not found:
            return 0, []
        now, states = self._link.call(lambda: self._script(keys=[self._key(name) for name in found]))
        return int(now), states

    def _refuse_torn(self, ends: dict[str, str], replayed: bytes | None) -> None:
        """Raise SnapshotTorn when entries were put back into a stream, OperationFailed when all were lost."""
        if self._link.call(lambda: self._link.client.get(self._key(REPLAYED))) != replayed:
            raise SnapshotTorn("dead letters are being replayed: try again when that is done")
        for last, (kind, _, state) in zip(ends.values(), self._states(list(ends))[1], strict=True):
            if kind != b"stream" or entry_order(text(state[0])) < entry_order(last):
                raise OperationFailed(LOST)

    def _queue(self, name: str, now: int, state: Any) -> Iterator[Line]:
        """Yield a stream with groups, as it was at the instant of `state`, without entries acked since."""
        last, groups = text(state[0]), state[GROUPS]
        yield {"key": name, "type": "stream"}
        present: set[str] = set()
        volume = 0
        for line in self._entries(name, last):
            present.add(line["id"])
            volume += sum(len(unpack(part)) for part in line["fields"])
            yield line
        shown = [[pack(group[0]), text(group[1]), group[3]] for group in groups]
        yield {"key": name, "last_id": last, "added": int(state[1]), "deleted": text(state[2]), "groups": shown}
        for group in groups:
            pending = [
                [text(entry_id), pack(consumer), now - idle, deliveries]
                for entry_id, consumer, idle, deliveries in group[2]
                if text(entry_id) in present
            ]
            for start in range(0, len(pending), PENDING_LINE):
                part = pending[start : start + PENDING_LINE]
                yield {"key": name, "group": pack(group[0]), "pending": part}
        if name == STREAM:
            yield {"key": VOLUME, "type": "string", "value": [str(volume)]}

    def _end(self, name: str) -> Iterator[Line]:
        """Yield a stream without groups to its present end; read after those whose entries may be moved here."""
        yield {"key": name, "type": "stream"}
        yield from self._entries(name, "+")
        ((kind, _, state),) = self._states([name])[1]
        if kind != b"stream":
            raise OperationFailed(LOST)
        yield {"key": name, "last_id": text(state[0]), "added": int(state[1]), "deleted": text(state[2]), "groups": []}

    def _entries(self, name: str, last: str) -> Iterator[Line]:
        for entry_id, fields in read_entries(self._link, self._key(name), last):
            yield {"key": name, "id": entry_id, "fields": [pack(part) for pair in fields.items() for part in pair]}


def _plain(name: str, kind: bytes, value: Any, expires_at: int | None) -> Line:
    flat = [value] if kind == b"string" else list(value)
    if kind == b"hash":
        flat = [part for pair in sorted(zip(flat[::2], flat[1::2], strict=True)) for part in pair]
    if kind == b"set":
        flat.sort()
    line: Line = {"key": name, "type": kind.decode(), "value": [pack(part) for part in flat]}
    return line | ({"expires_at": expires_at} if expires_at else {})


def pack(value: bytes) -> str | dict[str, str]:
    """Return Redis' bytes as JSON: text where they are text."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}


def unpack(value: str | dict[str, str]) -> bytes:
    """Return the bytes that `pack` was given."""
    return value.encode() if isinstance(value, str) else base64.b64decode(value["b64"])


@dataclass
class Tally:
    """Counts the lines of a snapshot: the numbers of a manifest, and a digest by which two snapshots are the same.

    Keys that expire are left out, and so are delivery times of pending entries, which Redis knows only as idle times.
    """

    keys: int = 0
    lengths: dict[str, int] = field(default_factory=dict)
    last_ids: dict[str, str] = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)
    pending: int = 0
    _digest: Any = field(default_factory=hashlib.sha256)

    def count(self, line: Line) -> Line:
        """Count one line; return it."""
        if "expires_at" in line:
            return line
        counted = line
        key = f"{line['partition']}:{line['key']}" if "partition" in line else line["key"]
        if "type" in line:
            self.keys += 1
            if line["type"] == "stream":
                self.lengths[key] = 0
        elif "id" in line:
            self.lengths[key] += 1
        elif "groups" in line:
            self.last_ids[key] = line["last_id"]
            self.groups |= {f"{key}/{name}": last for name, last, _ in line["groups"]}
        elif "pending" in line:
            self.pending += len(line["pending"])
            counted = line | {"pending": [[entry[0], entry[1], entry[3]] for entry in line["pending"]]}
        self._digest.update(json.dumps(counted, sort_keys=True).encode())
        return line

    def summary(self) -> dict[str, Any]:
        """Return the values of a manifest."""
        return {
            "key_count": self.keys,
            "stream_length": self._length("stream"),
            "pending": self.pending,
            "dlq_depth": self._length("dlq"),
            "last_ids": dict(self.last_ids),
            "last_delivered_ids": dict(self.groups),
            "digest": self._digest.hexdigest(),
        }

    def _length(self, name: str) -> int:
        """Return the entries of the streams of this name in all partitions."""
        return sum(length for key, length in self.lengths.items() if key.rpartition(":")[2] == name)
