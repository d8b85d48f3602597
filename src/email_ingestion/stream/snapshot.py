"""The whole keyspace as lines of text that outlive Redis; read while everybody works.

    {"key": "cursor:default/INBOX", "type": "hash", "value": ["uid", "17", "uidvalidity", "1"]}
    {"key": "stream", "type": "stream"}
    {"key": "stream", "id": "1767225600000-0", "fields": ["v", "1", …, "raw", {"b64": "KLUv/…"}]}
    {"key": "stream", "last_id": …, "added": …, "deleted": …, "groups": [[name, last id, entries read], …]}
    {"key": "stream", "group": "email_processor_group", "pending": [[id, consumer, delivered at (ms), deliveries], …]}

What is of another partition than 0 says so: "partition": 3.

Logical on purpose: Redis refuses an RDB or a DUMP that a newer Redis or a Valkey wrote, a managed Redis refuses
replication, and what is restored by commands is in its append-only file. Cursors and pending lists are of one instant,
entries are read after it: what was completed meanwhile is in the database, what was buried is read as a dead letter.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from email_ingestion.errors import OperationFailed, TransientError
from email_ingestion.stream.connection import RedisLink, text
from email_ingestion.stream.keys import Keys, entry_order

Line = dict[str, Any]

# An entry holds up to BLOB_THRESHOLD_BYTES: a page stays below some 10 MB.
PAGE = 50
PENDING_LINE = 1000
STREAM = "stream"
VOLUME = "volume"
REPLAYED = "replayed"
LOST = "Redis lost its data while it was read: find out why (redis-cli INFO server), restore the last backup"
GROUPS = 3  # in what the script says of a stream


class SnapshotTorn(TransientError):
    """Dead letters went back into the stream while both were read: read again."""


def key_names(link: RedisLink, keys: Keys, prefix: str = "") -> list[str]:
    """The keys below `prefix`, sorted and without it; presence and what a restore has half loaded are left out."""
    start = keys.name(prefix)
    found = link.call(lambda: [text(key) for key in link.node_for(keys).scan_iter(match=f"{start}*", count=1000)])
    passing = () if prefix else (keys.name("restoring:"), keys.alive(""))
    return sorted({name.removeprefix(start) for name in found if not passing or not name.startswith(passing)})


def read_snapshot(link: RedisLink, prefix: str = "") -> Iterator[Line]:
    """The keys below `prefix`, line by line, one partition after the other: each of them is of one instant.

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
        """See `read_snapshot`."""
        found = key_names(self._link, self._keys, self._prefix)
        now, states = self._states(found)
        told: set[str] = set()
        ends: dict[str, str] = {}
        replayed = None
        for name, (kind, ttl, value) in zip(found, states, strict=True):
            if name == REPLAYED:
                replayed = value
            if kind == b"stream" and not value[GROUPS]:
                continue
            told.add(name)
            if kind == b"stream":
                ends[name] = text(value[0])
                yield from self._queue(name, now, value)
            elif kind != b"none" and name != VOLUME:  # it expired meanwhile, or is told with its stream
                yield _plain(name, kind, value, now + ttl if ttl > 0 else None)
        # Streams that nobody takes from, last: what was moved there from the others, perhaps as its first entry, is
        # there.
        left = [name for name in key_names(self._link, self._keys, self._prefix) if name not in told]
        for name, (kind, _, _) in zip(left, self._states(left)[1], strict=True):
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
        """A stream with groups, as it was at the instant of `state`, without what was completed since."""
        last, groups = text(state[0]), state[GROUPS]
        yield {"key": name, "type": "stream"}
        there: set[str] = set()
        volume = 0
        for line in self._entries(name, last):
            there.add(line["id"])
            volume += sum(len(unpack(part)) for part in line["fields"])
            yield line
        shown = [[pack(group[0]), text(group[1]), group[3]] for group in groups]
        yield {"key": name, "last_id": last, "added": int(state[1]), "deleted": text(state[2]), "groups": shown}
        for group in groups:
            pending = [
                [text(entry_id), pack(consumer), now - idle, deliveries]
                for entry_id, consumer, idle, deliveries in group[2]
                if text(entry_id) in there
            ]
            for start in range(0, len(pending), PENDING_LINE):
                part = pending[start : start + PENDING_LINE]
                yield {"key": name, "group": pack(group[0]), "pending": part}
        if name == STREAM:
            yield {"key": VOLUME, "type": "string", "value": [str(volume)]}

    def _end(self, name: str) -> Iterator[Line]:
        """A stream without groups, to its end of now; read after those whose entries may be moved here."""
        yield {"key": name, "type": "stream"}
        yield from self._entries(name, "+")
        ((kind, _, state),) = self._states([name])[1]
        if kind != b"stream":
            raise OperationFailed(LOST)
        yield {"key": name, "last_id": text(state[0]), "added": int(state[1]), "deleted": text(state[2]), "groups": []}

    def _entries(self, name: str, last: str) -> Iterator[Line]:
        key, start = self._key(name), "-"
        while True:
            page: Any = self._link.call(partial(self._link.client.xrange, key, start, last, count=PAGE))
            for entry_id, fields in page:
                parts = [pack(part) for pair in fields.items() for part in pair]
                yield {"key": name, "id": text(entry_id), "fields": parts}
            if len(page) < PAGE:
                return
            start = f"({text(page[-1][0])}"


def _plain(name: str, kind: bytes, value: Any, expires_at: int | None) -> Line:
    flat = [value] if kind == b"string" else list(value)
    if kind == b"hash":
        flat = [part for pair in sorted(zip(flat[::2], flat[1::2], strict=True)) for part in pair]
    if kind == b"set":
        flat.sort()
    line: Line = {"key": name, "type": kind.decode(), "value": [pack(part) for part in flat]}
    return line | ({"expires_at": expires_at} if expires_at else {})


def pack(value: bytes) -> str | dict[str, str]:
    """Redis' bytes in JSON: text where they are."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}


def unpack(value: str | dict[str, str]) -> bytes:
    """The bytes again."""
    return value.encode() if isinstance(value, str) else base64.b64decode(value["b64"])


@dataclass
class Tally:
    """What went by: the numbers of a manifest, and a digest by which two snapshots are the same.

    Keys that expire are left out, and so is when a pending entry was delivered: Redis tells it by its idle time.
    """

    keys: int = 0
    lengths: dict[str, int] = field(default_factory=dict)
    last_ids: dict[str, str] = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)
    pending: int = 0
    _digest: Any = field(default_factory=hashlib.sha256)

    def count(self, line: Line) -> Line:
        """Take one line into account; returns it."""
        if "expires_at" in line:
            return line
        told = line
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
            told = line | {"pending": [[each[0], each[1], each[3]] for each in line["pending"]]}
        self._digest.update(json.dumps(told, sort_keys=True).encode())
        return line

    def summary(self) -> dict[str, Any]:
        """As it goes into a manifest."""
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
        """Of the streams of this name in all partitions."""
        return sum(length for key, length in self.lengths.items() if key.rpartition(":")[2] == name)
