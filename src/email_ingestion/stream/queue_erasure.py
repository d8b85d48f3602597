"""Erase messages from Redis: from the stream, the dead letters, and the output of the sink `stream`.

A message moves from the stream to the dead letters, and by a replay back: both are swept until nothing is found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import zstandard

from email_ingestion.blobs import reference
from email_ingestion.errors import PermanentError
from email_ingestion.records import Envelope
from email_ingestion.stream.codec import parse_envelope
from email_ingestion.stream.dead_letters import DeadLetterQueue
from email_ingestion.stream.entry_scan import EntryScanner, ScannedEntry, read_entries
from email_ingestion.stream.keys import entry_time, parse_entry_id
from email_ingestion.stream.quarantine import FetchStep, Quarantine, Suspects
from email_ingestion.stream.queue_dump import QueueDump, entry_bytes
from email_ingestion.stream.redis_link import RedisLink, text

HEAD_BYTES = 1024 * 1024  # of a message, in which its header is
IsErased = Callable[[str, str], bool]  # by identity, and by identity of the bytes


@dataclass(frozen=True, slots=True)
class QueuedMessage:
    """An entry of the stream or of the dead letters; without an envelope where it is not one of ours, or damaged."""

    id: str  # as `Keys.format_entry_id` makes it
    dead: bool
    envelope: Envelope | None
    account: str
    raw_ref: str  # in the blob store; empty where the entry holds the bytes
    packed: bytes  # in zstd

    @property
    def added(self) -> datetime:
        """The time at which the entry was added."""
        return datetime.fromtimestamp(entry_time(self.id), UTC)

    def head(self) -> bytes:
        """Return the first bytes of the message that the entry holds. Raises PermanentError when they are damaged."""
        try:
            with zstandard.ZstdDecompressor().stream_reader(self.packed) as content:
                return content.read(HEAD_BYTES)
        except zstandard.ZstdError as error:
            raise PermanentError(f"the payload of {self.id} cannot be unpacked: {error}") from error


class QueueErasure:
    """The queues of all partitions; methods and iterators raise like `RedisLink.call`."""

    def __init__(self, link: RedisLink, outputs: Sequence[str] = ()) -> None:
        """`outputs` are the streams that the sink `stream` writes to."""
        self._link = link
        self._outputs = outputs
        self._queue = QueueDump(link)
        self._dead_letters = DeadLetterQueue(link)

    def messages(self) -> Iterator[QueuedMessage]:
        """Yield all entries, with their payload; one that moves meanwhile is among them at least once."""
        for keys in self._link.partitions:
            for key, dead in ((keys.dlq, True), (keys.stream, False), (keys.dlq, True)):
                for entry_id, fields in read_entries(self._link, key):
                    if b"rehearsal" not in fields:
                        yield _message(keys.format_entry_id(entry_id), fields, dead=dead)

    def sweep(self, is_erased: IsErased) -> Counter[str]:
        """Remove what was erased, until nothing more is found; return how many entries, by place."""
        total: Counter[str] = Counter()
        while True:
            found: Counter[str] = Counter()
            for keys in self._link.partitions:
                scanner = EntryScanner(self._link, keys)
                for name, pages, remove in (
                    ("dead_letters", scanner.dead_letter_pages, self.remove_dead_letters),
                    ("stream", scanner.stream_pages, self._remove_entries),
                ):
                    for page in pages():
                        ids = [keys.format_entry_id(each.id) for each in page.entries if _is_erased(each, is_erased)]
                        found[name] += remove(ids) if ids else 0
            for key in self._outputs:
                found["sink_stream"] += self._sweep_output(key, is_erased)
            total += found
            if not found["dead_letters"] and not found["stream"]:
                return total

    def remove_dead_letters(self, ids: Sequence[str]) -> int:
        """Remove dead letters by id; return how many there were."""
        return sum(len(gone) for gone in self._dead_letters.remove(ids))

    def forget_place(self, account: str, mailbox: str, uidvalidity: int, uid: int) -> int:
        """Remove a message from the quarantine and from the suspects of its mailbox; return whether it was there."""
        quarantine = Quarantine(self._link, account, mailbox, uidvalidity)
        there = any(message.uid == uid for message in quarantine.messages())
        if there:
            quarantine.remove(uid)
        steps: tuple[FetchStep, ...] = ("summary", "body")
        for step in steps:
            Suspects(self._link, account, mailbox, uidvalidity).clear([uid], step)
        return int(there)

    def references(self) -> set[str]:
        """Return the references of all contents that entries name or hold."""
        found: set[str] = set()
        for keys in self._link.partitions:
            scanner = EntryScanner(self._link, keys)
            for pages in (scanner.dead_letter_pages(), scanner.stream_pages(), scanner.dead_letter_pages()):
                found |= {reference(entry.sha256) for page in pages for entry in page.entries}
        return found

    def _remove_entries(self, ids: Sequence[str]) -> int:
        found = ((entry_id, self._fields(entry_id)) for entry_id in ids)
        return sum(self._queue.remove([(entry_id, entry_bytes(fields)) for entry_id, fields in found if fields]))

    def _fields(self, formatted_id: str) -> Mapping[bytes, bytes]:
        partition, entry_id = parse_entry_id(formatted_id)
        read = partial(self._link.client.xrange, self._link.partitions[partition].stream, entry_id, entry_id)
        found: Any = self._link.call(read)
        return found[0][1] if found else {}

    def _sweep_output(self, key: str, is_erased: IsErased) -> int:
        ids = list(self._output_ids(key, is_erased))
        for entry_id in ids:
            self._link.call(partial(self._link.client.xdel, key, entry_id))
        return len(ids)

    def _output_ids(self, key: str, is_erased: IsErased) -> Iterator[str]:
        for entry_id, fields in read_entries(self._link, key):
            email_id = text(fields.get(b"email_id", b""))
            is_erasure = fields.get(b"kind") == b"erased"  # a change: what its readers need to know
            if email_id and not is_erasure and is_erased(email_id, ""):
                yield entry_id


def _is_erased(entry: ScannedEntry, is_erased: IsErased) -> bool:
    return is_erased(entry.email_id, f"{entry.account}:sha256:{entry.sha256}")


def _message(entry_id: str, fields: Mapping[bytes, bytes], *, dead: bool) -> QueuedMessage:
    try:
        envelope = parse_envelope(fields)
    except PermanentError:
        envelope = None
    raw_ref = reference(envelope.sha256) if envelope and fields.get(b"raw_ref") else ""
    account = text(fields.get(b"account", b""))
    return QueuedMessage(entry_id, dead, envelope, account, raw_ref, fields.get(b"raw", b""))
