"""Dead letters: the fields written on one, its record, the failures they share, and the queue that holds them.

    stream ──dead_letter (worker)──▶ dead letters ──replay──▶ stream
                                         └───────remove──▶ gone

Everything may run twice, at the same time, or be killed anywhere: a dead letter is replayed or removed once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from heapq import merge
from itertools import islice
from typing import Any, Literal

import zstandard

from email_ingestion import __version__
from email_ingestion.errors import PermanentError, TransientError, fingerprint_of
from email_ingestion.records import RawMessage, email_id
from email_ingestion.stream.codec import ZSTD_LEVEL, encode
from email_ingestion.stream.entry_scan import BEGINNING, PAGE, StreamEntry, newest_entry_id, read_entries
from email_ingestion.stream.keys import Keys, entry_order, entry_time, parse_entry_id
from email_ingestion.stream.redis_link import RedisLink, text

Reason = Literal["max_retries", "permanent", "poison", "operator", "malformed"]

ERROR_CHARACTERS = 1_000
TRACE_CHARACTERS = 8_000

# Redis does nothing else during a call: a replay copies its entries, so that a chunk stays below some milliseconds.
REPLAY_CHUNK = 20
REMOVE_CHUNK = 500

# The value where a dead letter has none: any program can add to the stream, and an operator must be able to filter.
UNKNOWN = "unknown"


def dead_letter_fields(
    reason: Reason, attempts: int, error: Exception | None, trace: str, instance: str
) -> dict[str, str]:
    """Return the `dead_…` fields that are added to the entry's own."""
    # An error of ours that has a name of its own says more than its cause; a bare one only wraps another.
    bare = type(error) in {TransientError, PermanentError}
    cause = error.__cause__ or error if error and bare else error
    return {
        "dead_reason": reason,
        "dead_error_type": type(cause).__name__ if cause else "",
        "dead_error": str(error or "")[:ERROR_CHARACTERS],
        "dead_traceback": trace[-TRACE_CHARACTERS:],
        "dead_attempts": str(attempts),
        "dead_at": datetime.now(UTC).isoformat(),
        "dead_fingerprint": fingerprint_of(reason, type(cause).__name__, str(cause or "")),
        "dead_instance": instance,
        "dead_version": __version__,
    }


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter without its payload; None or `unknown` where a field is missing, as another program may leave it.

    The error's text and the traceback are as they were written: they may quote a message.
    """

    id: str
    email_id: str
    account: str
    mailbox: str
    uid: int | None
    sha256: str  # hex digest of the raw message
    size: int | None  # bytes of the raw message
    raw_ref: str  # reference in the blob store, empty when the letter holds the raw message
    enqueued_at: str  # when it first entered the stream, ISO 8601
    dead_at: str  # ISO 8601, UTC, by Redis' clock
    reason: str
    error_type: str
    error: str
    traceback: str
    attempts: int | None
    fingerprint: str
    instance: str  # the worker that made it a dead letter
    version: str  # the release of that worker
    replays: int  # how often it was replayed before
    replay_of: str  # the letter it was replayed from, the last time
    sink: str  # the only sink that lacks the message; empty when all do


def parse_dead_letter(letter_id: str, fields: Mapping[bytes, bytes]) -> DeadLetter:
    """Return the record of a dead letter, whichever program wrote it; never fails and decodes no payload."""
    texts = {text(name): text(value) for name, value in fields.items() if name != b"raw"}
    return DeadLetter(
        id=letter_id,
        email_id=message_identity(texts) or f"entry:{letter_id}",
        account=texts.get("account", UNKNOWN),
        mailbox=texts.get("mailbox", UNKNOWN),
        uid=_number(texts.get("uid")),
        sha256=texts.get("sha256", ""),
        size=_number(texts.get("size")),
        raw_ref=texts.get("raw_ref", ""),
        enqueued_at=texts.get("enqueued_at", ""),
        dead_at=datetime.fromtimestamp(entry_time(letter_id), UTC).isoformat(timespec="milliseconds"),
        reason=texts.get("dead_reason", UNKNOWN),
        error_type=texts.get("dead_error_type", UNKNOWN),
        error=texts.get("dead_error", ""),
        traceback=texts.get("dead_traceback", ""),
        attempts=_number(texts.get("dead_attempts")),
        fingerprint=texts.get("dead_fingerprint", UNKNOWN),
        instance=texts.get("dead_instance", UNKNOWN),
        version=texts.get("dead_version", UNKNOWN),
        replays=_number(texts.get("replays")) or 0,
        replay_of=texts.get("replay_of", ""),
        sink=texts.get("sink", ""),
    )


def message_identity(fields: Mapping[str, str]) -> str | None:
    """Return the identity of the message with these fields; None when they do not tell."""
    account, sha256, msgid = fields.get("account"), fields.get("sha256"), _number(fields.get("gm_msgid"))
    return email_id(account, msgid, sha256) if account and sha256 else None


def _number(value: str | None) -> int | None:
    return int(value) if value and re.fullmatch(r"[0-9]{1,20}", value) else None


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Selects the dead letters that fulfil every condition that is set."""

    reason: str | None = None
    error_type: str | None = None
    fingerprint: str | None = None
    account: str | None = None

    def matches(self, dead_letter: DeadLetter) -> bool:
        """Whether a dead letter fulfils them."""
        return (
            self.reason in {None, dead_letter.reason}
            and self.error_type in {None, dead_letter.error_type}
            and self.fingerprint in {None, dead_letter.fingerprint}
            and self.account in {None, dead_letter.account}
        )


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Dead letters with the same fingerprint."""

    fingerprint: str
    count: int
    first: str  # ISO 8601, UTC
    last: str
    example: str  # the id of the latest, which is the one worth looking at
    reason: str
    error_type: str
    error: str


def group_failures(dead_letters: Iterable[DeadLetter]) -> list[FailureGroup]:
    """Group dead letters, which must come in the order of their ids, by fingerprint; the most frequent first."""
    found: dict[str, FailureGroup] = {}
    for dead_letter in dead_letters:
        before = found.get(dead_letter.fingerprint)
        found[dead_letter.fingerprint] = FailureGroup(
            fingerprint=dead_letter.fingerprint,
            count=before.count + 1 if before else 1,
            first=before.first if before else dead_letter.dead_at,
            last=dead_letter.dead_at,
            example=dead_letter.id,
            reason=dead_letter.reason,
            error_type=dead_letter.error_type,
            error=dead_letter.error,
        )
    return sorted(found.values(), key=lambda group: -group.count)


def count_letters(count: int) -> str:
    """Return a number of dead letters in words."""
    return f"{count} dead letter{'' if count == 1 else 's'}"


class DeadLetterQueue:
    """The dead letters of all partitions. Methods and iterators raise like `RedisLink.call`."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._client = link.client
        self._partitions = link.partitions
        self._replay = link.script("replay")

    def depth(self) -> int:
        """Return how many dead letters there are."""
        return self._link.call(lambda: sum(int(self._client.xlen(keys.dlq)) for keys in self._partitions))

    def add(self, message: RawMessage, fields: Mapping[str, str]) -> str:
        """Add a message that is no longer in the stream, with `dead_letter_fields`: a single sink did not get it.

        Return the id of the dead letter.

        Not idempotent: a repetition makes a second dead letter, whose replay is harmless.
        """
        compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
        entry: dict[Any, Any] = {**encode(message, datetime.now(UTC), compressor), **fields}
        keys = self._link.keys_for(message.envelope.account)
        return keys.format_entry_id(text(self._link.call(lambda: self._client.xadd(keys.dlq, entry))))

    def letters(self, before: datetime | None = None, after: str = "") -> Iterator[DeadLetter]:
        """Yield the present dead letters, or those that died before a time, oldest first; only those `after` an id.

        Dead letters that come meanwhile are not among them: else replaying a message that fails again would never end.
        """
        ends = [newest_entry_id(self._link, keys.dlq) for keys in self._partitions]  # of all, before the first is read
        if before:
            ends = [min(end, f"{max(0, int(before.timestamp() * 1000))}-0", key=entry_order) for end in ends]
        start = parse_entry_id(after)[1] if after else BEGINNING
        found = (self._letters_within(keys, start, end) for keys, end in zip(self._partitions, ends, strict=True))
        for letter in merge(*found, key=lambda dead_letter: entry_order(dead_letter.id)):
            if not after or _order(letter.id) > _order(after):
                yield letter

    def _letters_within(self, keys: Keys, start: str, end: str) -> Iterator[DeadLetter]:
        for letter_id, fields in read_entries(self._link, keys.dlq, end, start):
            yield parse_dead_letter(keys.format_entry_id(letter_id), fields)

    def find(self, ids: Iterable[str]) -> Iterator[DeadLetter]:
        """Yield the dead letters with these ids, as far as they exist."""
        return (parse_dead_letter(letter_id, fields) for letter_id, fields in self.entries(ids))

    def entries(self, ids: Iterable[str]) -> Iterator[StreamEntry]:
        """Yield id and all fields, payload included, of the dead letters with these ids, a page of them in memory."""
        for chunk in _chunks(ids, PAGE):
            found = (entry for keys, here in self._by_partition(chunk) for entry in self._exactly(keys, here))
            yield from sorted(found, key=lambda entry: entry_order(entry[0]))

    def raw(self, letter_id: str) -> bytes | None:
        """Return the RFC 822 bytes of a dead letter, whatever else of it is damaged; None when it has none.

        Raises PermanentError when they cannot be unpacked.
        """
        for _, fields in self.entries([letter_id]):
            if b"raw" in fields:
                try:
                    return zstandard.ZstdDecompressor().decompress(fields[b"raw"])
                except zstandard.ZstdError as error:
                    raise PermanentError(f"the payload of {letter_id} cannot be unpacked: {error}") from error
        return None

    def replay(self, ids: Iterable[str]) -> Iterator[int]:
        """Put dead letters back into the stream, chunk by chunk; yield how many of each chunk still existed."""
        for chunk in _chunks(ids, REPLAY_CHUNK):
            for keys, here in self._by_partition(chunk):
                yield self._replay_chunk(keys, here)

    def remove(self, ids: Iterable[str]) -> Iterator[list[str]]:
        """Delete dead letters for good, chunk by chunk; yield the ids of each chunk that still existed."""
        for chunk in _chunks(ids, REMOVE_CHUNK):
            for keys, here in self._by_partition(chunk):
                yield self._delete(keys, here)

    def _replay_chunk(self, partition: Keys, ids: Sequence[str]) -> int:
        keys = [partition.stream, partition.volume, partition.dlq, partition.replayed, partition.priority]
        return int(self._link.call(lambda: self._replay(keys=keys, args=ids)))

    def _delete(self, keys: Keys, ids: Sequence[str]) -> list[str]:
        def delete() -> list[Any]:
            pipe = self._link.node_for(keys).pipeline(transaction=False)
            for letter_id in ids:
                pipe.xdel(keys.dlq, letter_id)
            return pipe.execute()

        deleted = self._link.call(delete)
        return [keys.format_entry_id(letter_id) for letter_id, gone in zip(ids, deleted, strict=True) if gone]

    def _exactly(self, keys: Keys, ids: Sequence[str]) -> list[StreamEntry]:
        pipe = self._client.pipeline(transaction=False)
        for letter_id in ids:
            pipe.xrange(keys.dlq, letter_id, letter_id)
        return [
            (keys.format_entry_id(text(entry_id)), fields)
            for found in self._link.call(pipe.execute)
            for entry_id, fields in found
        ]

    def _by_partition(self, ids: Sequence[str]) -> Iterator[tuple[Keys, list[str]]]:
        """Group ids by partition; ids of a partition that does not exist are left out."""
        for keys in self._partitions:
            here = [entry_id for partition, entry_id in map(parse_entry_id, ids) if partition == keys.partition]
            if here:
                yield keys, here


def _order(letter_id: str) -> tuple[object, int]:
    """Return where a letter stands among those of all partitions."""
    return entry_order(letter_id), parse_entry_id(letter_id)[0]


def _chunks(ids: Iterable[str], size: int) -> Iterator[list[str]]:
    left = iter(ids)
    while chunk := list(islice(left, size)):
        yield chunk
